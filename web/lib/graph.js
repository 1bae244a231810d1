/** What the extension does with the graph: loaders for finished files, the card inside train nodes. */

import { JobCard } from './card.js'
import { el, show } from './dom.js'

export const TRAIN_NODES = ['MotionLoRA_TrainMotionLoRA', 'MotionLoRA_TrainAppearanceAbsorber']
const LOADERS = {
  'motion-lora': { type: 'MotionLoRA_LoadMotionLoRA', widget: 'lora_name', next: 'MotionLoRA_MotionLoRAStack' },
  'appearance-absorber': { type: 'MotionLoRA_LoadAbsorber', widget: 'absorber_name' }
}

/** The middle of what the user sees, in graph units. */
function viewCentre(app) {
  const { canvas, ds } = app.canvas
  return [canvas.clientWidth / 2 / ds.scale - ds.offset[0], canvas.clientHeight / 2 / ds.scale - ds.offset[1]]
}

/** Puts a loader of the job's file on the canvas, for a motion LoRA with a stack node whose strength is ready to turn. */
export function addToGraph(app, job) {
  const { LiteGraph } = window
  const loader = LOADERS[job.kind]
  const graph = app.canvas.graph ?? app.graph
  const [x, y] = viewCentre(app)
  const node = LiteGraph.createNode(loader.type)
  node.pos = [x - 160, y - 60]
  graph.add(node)
  const widget = node.widgets.find((one) => one.name === loader.widget)
  // The list was made when the page was loaded; the server knows the new file.
  const values = widget.options?.values
  if (Array.isArray(values) && !values.includes(job.published)) values.push(job.published)
  widget.value = job.published
  if (loader.next) {
    const next = LiteGraph.createNode(loader.next)
    next.pos = [x + 200, y - 60]
    graph.add(next)
    node.connect(0, next, 0)
  }
  app.canvas.selectNode?.(node)
  graph.setDirtyCanvas?.(true, true)
}

/** Whether a job was asked for by this node. Inside a subgraph the server knows it as "12:5". */
function isOf(node, app, asked) {
  const own = String(node.id)
  const root = app.rootGraph ?? app.graph
  if (asked.workflow && root.id && asked.workflow !== root.id) return false
  return asked.id === own || (node.graph !== root && asked.id.endsWith(`:${own}`))
}

/** Adds to a train node a card of its newest job; it follows the jobs for as long as the node is there. */
export function addJobWidget(app, jobs, act, node) {
  const hint = el('p', { class: 'mlora-hint', textContent: 'Progress shows here and in the Motion LoRA panel.' })
  const holder = el('div', { class: 'mlora-in-node' }, hint)
  // Presses and keys in the card must not reach the canvas, which would drag the node or delete it.
  for (const kind of ['pointerdown', 'mousedown', 'wheel', 'keydown']) {
    holder.addEventListener(kind, (event) => event.stopPropagation())
  }
  let card = null
  const update = () => {
    const job = jobs.all.find((one) => (one.nodes ?? []).some((asked) => isOf(node, app, asked)))
    show(hint, !job)
    if (!job) {
      card?.element.remove()
      card = null
    } else if (card?.job.id === job.id) {
      card.update(job)
    } else {
      card?.element.remove()
      card = new JobCard(job, act, { compact: true, previewUrl: (one, name) => jobs.previewUrl(one, name) })
      holder.append(card.element)
    }
  }
  const widget = node.addDOMWidget('motion_lora_job', 'motion_lora_job', holder, {
    serialize: false,
    hideOnZoom: false,
    getMinHeight: () => (card ? (card.job.validation?.points?.length ? 226 : 190) : 40),
    getValue: () => '',
    setValue: () => {}
  })
  // Only for show: a saved workflow must not hold a value for it.
  widget.serialize = false
  jobs.addEventListener('changed', update)
  const removed = node.onRemoved
  node.onRemoved = function (...args) {
    jobs.removeEventListener('changed', update)
    return removed?.apply(this, args)
  }
  update()
}
