// Names for the front end's types, and what its package of types leaves out.

import type { ComfyApp, ComfyExtension, ComfyNodeDef } from "@comfyorg/comfyui-frontend-types"

declare global {
  type Graph = ComfyApp["rootGraph"]
  type NodeClass = Parameters<NonNullable<ComfyExtension["beforeRegisterNodeDef"]>>[0]
  type NodeDefinition = ComfyNodeDef
  type Widget = NonNullable<NodeClass["prototype"]["widgets"]>[number] & {
    value?: any
    options: { advanced?: boolean }
    serializeValue?: () => string
  }

  interface DomWidgetOptions {
    serialize?: boolean
    hideOnZoom?: boolean
    margin?: number
    getMinHeight?: () => number
    getMaxHeight?: () => number
    getValue?: () => string
    setValue?: (value: string) => void
  }

  type DomWidget = Widget & { element: HTMLElement; margin: number; serialize: boolean }

  /** A node, of which some hold a subgraph. */
  type GraphNode = NodeClass["prototype"] & {
    comfyClass?: string
    subgraph?: Graph
    addDOMWidget(name: string, type: string, element: HTMLElement, options: DomWidgetOptions): DomWidget
  }

  const LiteGraph: {
    NODE_FONT: string
    NODE_SLOT_HEIGHT: number
    NODE_TEXT_SIZE: number
    NODE_TITLE_HEIGHT: number
    NODE_WIDGET_HEIGHT: number
    NODE_WIDTH: number
    LGraphNode: { prototype: NodeClass["prototype"] }
    registered_node_types: Record<string, NodeClass>
    /** Whether Vue draws the nodes, and not the canvas. */
    vueNodesMode: boolean
  }
}
