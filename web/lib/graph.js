/** What the extension does with the graph: loaders for finished files, the card inside train nodes. */

import { JobCard } from './card.js'
import { el } from './dom.js'

export const TRAIN_NODES = ['MotionLoRA_TrainMotionLoRA', 'MotionLoRA_TrainAppearanceAbsorber']
const LOADERS = {
  'motion-lora': { type: 'MotionLoRA_LoadMotionLoRA', widget: 'lora_name', next: 'MotionLoRA_MotionLoRAStack' },
  'appearance-absorber': { type: 'MotionLoRA_LoadAbsorber', widget: 'absorber_name' }
}

// Nodes 2.0 guesses what a node shows by whether it takes a video, which is wrong for all of these.
const SHOWS = {
  MotionLoRA_ReferenceClip: 'image',
  MotionLoRA_SampleVideo: 'video',
  MotionLoRA_SideBySide: 'video',
  MotionLoRA_CompareLoRAs: 'video'
}

// As the canvas draws them, without the gap below each.
const ROW = 20
const TEXT = 60

/** The classic canvas folds by a property that it does not set itself, and leaves a gap where a folded widget was. */
export function foldAdvanced(node) {
  const folded = (node.widgets ?? []).filter((widget) => widget.options?.advanced)
  for (const widget of folded) {
    const own = widget.computeSize?.bind(widget)
    const height = widget.computeLayoutSize ? TEXT : ROW
    widget.advanced = true
    widget.computeSize = (width) => (node.showAdvanced ? own?.(width) ?? [width ?? 0, height] : [0, -4])
  }
  if (folded.length) node.setSize?.([node.size[0], node.computeSize()[1]])
}

/** Says what kind of preview a node has. */
export function markPreview(node) {
  if (node.comfyClass in SHOWS) node.previewMediaType = SHOWS[node.comfyClass]
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

/** A place of our own in a node, only for show: a saved workflow must not hold a value for it. */
function addHolder(node, name, height, ...children) {
  const holder = el('div', { class: 'mlora-in-node' }, ...children)
  // Presses and keys in it must not reach the canvas, which would drag the node or delete it.
  for (const kind of ['pointerdown', 'mousedown', 'wheel', 'keydown']) {
    holder.addEventListener(kind, (event) => event.stopPropagation())
  }
  const widget = node.addDOMWidget(name, name, holder, {
    serialize: false,
    hideOnZoom: false,
    getMinHeight: height,
    getValue: () => '',
    setValue: () => {}
  })
  widget.serialize = false
  return holder
}

const PLAN_HEIGHT = 76

/** Adds to a node that samples the line that says what its zeros stand for. */
export function addPlanWidget(planner, node) {
  addHolder(node, 'motion_lora_plan', () => 40, planner.add(node).element)
}

/** Adds to a train node what it will do, and a card of its newest job, which follows the jobs while the node is there. */
export function addJobWidget(app, jobs, act, planner, node) {
  let card = null
  const height = () => PLAN_HEIGHT + (card ? (card.job.validation?.points?.length ? 226 : 190) : 0)
  const holder = addHolder(node, 'motion_lora_job', height, planner.add(node).element)
  const update = () => {
    const job = jobs.all.find((one) => (one.nodes ?? []).some((asked) => isOf(node, app, asked)))
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
  jobs.addEventListener('changed', update)
  const removed = node.onRemoved
  node.onRemoved = function (...args) {
    jobs.removeEventListener('changed', update)
    return removed?.apply(this, args)
  }
  update()
}
