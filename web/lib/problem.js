/** Why a node failed and what to do about it, in the node itself until it is run again. */

import { el, setText } from './dom.js'

const OURS = 'MotionLoRA_'
const shown = new Map()

/** The node of an id as the server says it; "12:5" is node 5 in the subgraph node 12. */
export function nodeOf(app, id) {
  let graph = app.rootGraph ?? app.graph
  let node = null
  for (const part of String(id).split(':')) {
    node = (graph?._nodes ?? []).find((one) => String(one.id) === part)
    graph = node?.subgraph
  }
  return node ?? null
}

function tell(node, text) {
  clear(node)
  const line = el('p', { class: 'mlora-problem', role: 'alert', textContent: text })
  const holder = el('div', { class: 'mlora-in-node' }, line)
  const widget = node.addDOMWidget('motion_lora_problem', 'motion_lora_problem', holder, {
    serialize: false,
    hideOnZoom: false,
    getMinHeight: () => 20 + 16 * Math.ceil(text.length / 50),
    getValue: () => '',
    setValue: () => {}
  })
  widget.serialize = false
  shown.set(node, widget)
  node.setSize?.([node.size[0], Math.max(node.size[1], node.computeSize()[1])])
}

function clear(node) {
  const widget = shown.get(node)
  if (!widget) return
  shown.delete(node)
  node.removeWidget?.(widget)
}

/** Keep the nodes' problems up to date with the server's messages. */
export function showProblems(app, api) {
  api.addEventListener('execution_start', () => [...shown.keys()].forEach(clear))
  api.addEventListener('execution_error', ({ detail }) => {
    const node = nodeOf(app, detail.node_id)
    if (node?.comfyClass?.startsWith(OURS)) tell(node, String(detail.exception_message ?? '').trim().slice(0, 600))
  })
}
