import type { ComfyApp } from "@comfyorg/comfyui-frontend-types"

export function applyTextReplacements(graph: ComfyApp["rootGraph"], value: string): string
