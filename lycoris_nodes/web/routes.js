// Made by `python -m tests.harness.routes --write` from `lycoris_nodes/routes.py`: change that.

/**
 * @typedef {[
 *   file: string,
 *   size: number,
 *   changed: number,
 * ]} ListedFile
 */

/**
 * @typedef {{
 *   file?: string,
 * }} FileQuestion
 */

/**
 * @typedef {{
 *   file: string,
 *   low_noise: string,
 *   sure: boolean,
 * }} PairOfFiles
 */

/**
 * @typedef {{
 *   kind: string,
 *   rank: string,
 *   family: string,
 *   families: string[],
 *   signals: string[],
 *   base: string,
 *   dialect: string,
 *   size: number,
 *   triggers: string[],
 *   stated: boolean,
 *   tags: [string, number][],
 *   date: string,
 *   notes: string[],
 *   facts: [string, string][],
 *   problems: string[],
 *   file: string,
 *   title: string,
 *   preview: string,
 *   tags_beside: string[],
 *   expert: "high noise" | "low noise" | null,
 *   pair: PairOfFiles | null,
 * }} AboutFile
 */

/**
 * @typedef {{
 *   nodes?: string,
 * }} NodesQuestion
 */

/**
 * @typedef {{
 *   node: string,
 *   prompt: Record<string, Record<string, any>>,
 *   output: Record<string, any>,
 * }} KeptReport
 */

/**
 * @typedef {{
 *   language?: string,
 * }} WordsQuestion
 */

/**
 * @typedef {{
 *   page: Record<string, string>,
 *   notes: Record<string, string>,
 *   choices: Record<string, Record<string, Record<string, string>>>,
 * }} PageWords
 */

/**
 * @typedef {{
 *   files: string[],
 * }} FilesQuestion
 */

/**
 * @typedef {{
 *   error: string,
 *   kind: string,
 *   rank: string,
 *   family: string,
 *   families: string[],
 *   triggers: string[],
 *   stated: boolean,
 *   tags: string[],
 *   title: string,
 *   base: string,
 *   favourite: boolean,
 *   preview: string,
 *   problems: string[],
 * }} Facts
 */

/**
 * @typedef {{
 *   file: string,
 *   on?: boolean,
 *   strength_model?: number | string,
 *   strength_clip?: number | string,
 *   rules?: string,
 *   low_noise?: string,
 *   video?: number | string,
 *   audio?: number | string,
 * }} Row
 */

/**
 * @typedef {{
 *   rows: Row[],
 * }} ReadRows
 */

/**
 * @typedef {{
 *   index: number,
 *   reason: string,
 *   details: string,
 * }} RefusedRow
 */

/**
 * @typedef {{
 *   model: string[],
 *   clip: string[],
 * }} ModelQuestion
 */

/**
 * @typedef {{
 *   file: string,
 *   family: string,
 *   families: string[],
 * }} ModelFacts
 */

/**
 * @typedef {{
 *   model: string[],
 *   clip: string[],
 *   node: string,
 *   page: string,
 *   linked: string[],
 *   type?: string,
 *   values?: Record<string, any>,
 *   anew?: boolean,
 * }} TrainingQuestion
 */

/**
 * @typedef {{
 *   name: string,
 *   folder: string,
 *   losses: [number, number][],
 *   validation: [number, number][],
 *   samples: [number, number][],
 *   expert: string,
 *   step: number,
 *   steps: number,
 *   differences: string[],
 *   others: Record<string, any>,
 * }} Stopped
 */

/**
 * @typedef {{
 *   usual: Record<string, string>,
 *   running: Record<string, any> | null,
 *   stopped: Stopped | null,
 * }} Told
 */

/**
 * @typedef {{
 *   text: string,
 * }} ConfigQuestion
 */

/**
 * @typedef {{
 *   trainer: string,
 *   values: Record<string, any>,
 *   pictures: Record<string, any>,
 *   notes: string[],
 * }} Translated
 */

/**
 * @typedef {{
 *   model: string[],
 *   clip: string[],
 *   file: string,
 * }} BarsQuestion
 */

/**
 * @typedef {{
 *   name: string,
 *   layers: number,
 *   mine: number,
 *   share: number,
 * }} ShownBar
 */

/**
 * @typedef {{
 *   name: string,
 *   sort: "blocks" | "beside" | "text" | "kinds",
 *   bars: ShownBar[],
 * }} ShownGroup
 */

/**
 * @typedef {{
 *   model: string,
 *   connected: boolean,
 *   groups: ShownGroup[],
 *   presets: Record<string, string>,
 *   done: number,
 *   of: number,
 *   unmeasured: number,
 * }} ShownBars
 */

/**
 * @typedef {{
 *   model: string[],
 *   clip: string[],
 *   file: string,
 *   rules: string,
 * }} RulesQuestion
 */

/**
 * @typedef {[
 *   mean: number,
 *   least: number,
 *   most: number,
 * ]} BarWeight
 */

/**
 * @typedef {{
 *   line: number[],
 *   weights: Record<string, BarWeight>,
 *   kinds: Record<string, number>,
 *   idle: string[],
 * }} WeighedBars
 */

/**
 * @typedef {{
 *   model: string[],
 *   clip: string[],
 *   file: string,
 *   rules: string,
 *   weights: Record<string, number>,
 * }} PaintQuestion
 */

/**
 * @typedef {{
 *   rules: string,
 * }} PaintedRules
 */

/**
 * @typedef {{
 *   name: string,
 *   values: number[],
 * }} DrawnCurve
 */

/**
 * @typedef {{
 *   curves: DrawnCurve[],
 * }} DrawnCurves
 */

/**
 * @typedef {{
 *   page: string,
 *   language: string,
 * }} LanguageQuestion
 */

/**
 * @typedef {{
 *   "/lycoris/adapters": [asked: {}, answer: ListedFile[]],
 *   "/lycoris/adapters/about": [asked: FileQuestion, answer: AboutFile],
 *   "/lycoris/reports": [asked: NodesQuestion, answer: KeptReport[]],
 *   "/lycoris/words": [asked: WordsQuestion, answer: PageWords],
 * }} Gets
 */

/**
 * @typedef {{
 *   "/lycoris/adapters/facts": [asked: FilesQuestion, answer: Record<string, Facts>],
 *   "/lycoris/rows": [asked: string, answer: ReadRows],
 *   "/lycoris/rows/refused": [asked: string, answer: RefusedRow[]],
 *   "/lycoris/model": [asked: ModelQuestion, answer: ModelFacts],
 *   "/lycoris/training": [asked: TrainingQuestion, answer: Told],
 *   "/lycoris/config": [asked: ConfigQuestion, answer: Translated],
 *   "/lycoris/bars": [asked: BarsQuestion, answer: ShownBars],
 *   "/lycoris/rules": [asked: RulesQuestion, answer: WeighedBars],
 *   "/lycoris/paint": [asked: PaintQuestion, answer: PaintedRules],
 *   "/lycoris/curve": [asked: string, answer: DrawnCurves],
 *   "/lycoris/language": [asked: LanguageQuestion, answer: null],
 * }} Posts
 */

export const ROW_VERSION = /** @type {const} */ (1)
export const ROW_FIELDS = /** @type {const} */ ({"file": "string", "on": "boolean", "strength_model": "number", "strength_clip": "number", "rules": "string", "low_noise": "string", "video": "number", "audio": "number"})
export const SIGNALS = /** @type {const} */ (["video", "audio"])
export const ENDINGS = /** @type {const} */ ([".safetensors", ".sft", ".pt", ".pth", ".ckpt", ".bin"])
