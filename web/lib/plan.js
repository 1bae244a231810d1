/** What a node will do, told before Run: a line in the node that follows its widgets, its base and its clips. */

import { el, setText, show } from './dom.js'

export const PLANNED = {
  MotionLoRA_TrainMotionLoRA: 'training',
  MotionLoRA_TrainAppearanceAbsorber: 'absorber',
  MotionLoRA_SampleVideo: 'sampling'
}
// Widgets that say nothing of what a training takes.
const APART = ['name', 'preview_prompt', 'validate_prompts', 'prompt', 'negative_prompt', 'seed', 'control_after_generate']
const COMPOSED = 'checkpoint + motion module (AnimateDiff)'
// The front end's own id for what comes into a subgraph.
const SUBGRAPH_INPUT = -10
const PLAYGROUND_SIDE = 64
const AGAIN_AFTER = 15000

/** The node at an input, by the input's name. */
function at(node, name) {
  const slot = node.inputs?.findIndex((input) => input.name === name) ?? -1
  return slot < 0 ? null : source(node, slot)
}

/** What a slot is linked to; from inside a subgraph also what its node is linked to outside. */
function source(node, slot) {
  const link = node.getInputLink?.(slot)
  if (link?.origin_id !== SUBGRAPH_INPUT) return node.getInputNode?.(slot) ?? null
  const owner = ownerOf(node.graph)
  return owner ? source(owner, link.origin_slot) : null
}

/** The node that stands for a subgraph, wherever it is. */
function ownerOf(subgraph) {
  const root = subgraph?.rootGraph
  const graphs = root ? [root, ...(root.subgraphs?.values() ?? [])] : []
  return graphs.flatMap((graph) => graph._nodes ?? graph.nodes ?? []).find((node) => node.subgraph === subgraph) ?? null
}

/** Values of a node's widgets by name, only those that the server takes. */
export function valuesOf(node) {
  const values = {}
  for (const { name, value, serialize } of node?.widgets ?? []) {
    if (serialize === false || APART.includes(name)) continue
    if (['string', 'number', 'boolean'].includes(typeof value)) values[name] = value
  }
  return values
}

/** [frames, height, width] of each clip that a node gives; 0 where only the server knows. */
export function clipsOf(node) {
  if (!node) return []
  const values = valuesOf(node)
  if (node.type === 'MotionLoRA_PlaygroundClip') return [[values.num_frames, PLAYGROUND_SIDE, PLAYGROUND_SIDE]]
  if (node.type === 'MotionLoRA_ReferenceClip') return [[values.num_frames, values.height, values.width]]
  if (node.type === 'MotionLoRA_CombineClips') return ['clips_1', 'clips_2'].flatMap((name) => clipsOf(at(node, name)))
  return [[0, 0, 0]]
}

/** What the server is asked for a node; null while it has no base. */
export function question(node) {
  const base = valuesOf(at(node, 'base_model'))
  if (!base.model) return null
  const kind = PLANNED[node.type]
  const composed = base.model === COMPOSED
  const model = composed ? `${base.checkpoint} + ${base.motion_module}` : base.model
  const asked = { kind, model, dtype: base.dtype ?? 'auto', widgets: valuesOf(node) }
  if (kind === 'sampling') return asked
  const options = at(node, 'options')
  return {
    ...asked,
    clips: clipsOf(at(node, 'clips')),
    given: at(node, 'appearance_absorber') !== null,
    ...(options ? { options: valuesOf(options) } : {})
  }
}

/** The lines themselves. */
export class PlanLine {
  constructor(ask) {
    this.ask = ask
    this.sentence = el('p', { class: 'mlora-plan' })
    this.details = el('p', { class: 'mlora-hint' })
    this.advice = el('p', { class: 'mlora-problem', role: 'alert', hidden: true })
    this.element = el('div', { class: 'mlora-planned', role: 'status' }, this.sentence, this.details, this.advice)
  }

  /** Ask again where something changed; answers that were overtaken are dropped. */
  async update(node) {
    const asked = question(node)
    const body = JSON.stringify(asked)
    if (body === this.asked) return
    this.asked = body
    if (!asked) return this.#tell({ details: at(node, 'base_model') ? '' : 'Connect a base model.' })
    setText(this.details, 'Working out what this will take...')
    const told = await this.ask(asked).catch((error) => this.#notTold(error))
    if (body !== this.asked) return
    this.#tell(told)
    if (told.later) this.#askAgain()
  }

  /** What the server refuses stands until something changes; one that is busy is asked again. */
  #notTold(error) {
    if (error.refused) return { advice: error.message }
    return { later: true, details: 'The server is busy; what this will take is worked out later.' }
  }

  #askAgain() {
    setTimeout(() => (this.asked = undefined), AGAIN_AFTER)
  }

  #tell({ sentence = '', details = '', advice = '' }) {
    setText(this.sentence, sentence)
    setText(this.details, details)
    setText(this.advice, advice)
    show(this.advice, Boolean(advice))
  }
}

/** Looks at all planned nodes once a second: a widget changes in a dozen ways, and none of them has to be known. */
export class Planner {
  constructor(ask) {
    this.ask = ask
    this.lines = new Map()
  }

  start() {
    setInterval(() => document.hidden || this.lines.forEach((line, node) => node.graph && line.update(node)), 1000)
  }

  add(node) {
    const line = new PlanLine(this.ask)
    this.lines.set(node, line)
    const removed = node.onRemoved
    node.onRemoved = (...args) => {
      this.lines.delete(node)
      return removed?.apply(node, args)
    }
    return line
  }
}
