/** Curves as SVG. Loss: every step faintly, an exponential average boldly, stages divided by a line. Validation: scores. */

import { el, setText, show } from './dom.js'

const SVG = 'http://www.w3.org/2000/svg'
const WIDTH = 300
const SMOOTHING = 0.92

function svg(tag, attributes = {}) {
  const element = document.createElementNS(SVG, tag)
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value)
  return element
}

/** `points` are [stage, step, loss]; x counts on over the stages. */
export function layOut(points) {
  const placed = []
  const borders = []
  let offset = 0
  let before = null
  for (const [stage, step, loss] of points) {
    if (!Number.isFinite(loss)) continue
    if (before && before[0] !== stage) {
      offset += before[1]
      borders.push(offset)
    }
    before = [stage, step]
    placed.push({ stage, x: offset + step, loss })
  }
  return { placed, borders }
}

/** Exponential average that starts anew with each stage; early values are corrected for the start at zero. */
export function smooth(placed, memory = SMOOTHING) {
  let mean = 0
  let weight = 0
  let stage = null
  return placed.map((point) => {
    if (point.stage !== stage) [mean, weight, stage] = [0, 0, point.stage]
    mean = memory * mean + (1 - memory) * point.loss
    weight = memory * weight + (1 - memory)
    return { ...point, loss: mean / weight }
  })
}

/** Lowest and highest loss without the highest two percent, so that one wild step does not flatten the curve. */
function bounds(placed) {
  const losses = placed.map((point) => point.loss).sort((a, b) => a - b)
  const low = losses[0]
  const high = losses[Math.floor((losses.length - 1) * 0.98)]
  return high > low ? [low, high] : [low - 0.5 * Math.abs(low || 1), low + 0.5 * Math.abs(low || 1)]
}

export class LossChart {
  /** @param {number} height in pixels of the drawing */
  constructor(height = 72) {
    this.height = height
    this.raw = svg('polyline', { class: 'mlora-chart-raw', 'vector-effect': 'non-scaling-stroke' })
    this.mean = svg('polyline', { class: 'mlora-chart-mean', 'vector-effect': 'non-scaling-stroke' })
    this.borders = svg('g')
    this.picture = svg('svg', {
      viewBox: `0 0 ${WIDTH} ${height}`,
      preserveAspectRatio: 'none',
      class: 'mlora-chart-picture',
      role: 'img'
    })
    this.picture.append(this.borders, this.raw, this.mean)
    this.picture.style.height = `${height}px`
    this.legend = document.createElement('p')
    this.legend.className = 'mlora-chart-legend'
    this.element = document.createElement('div')
    this.element.className = 'mlora-chart'
    this.element.append(this.legend, this.picture)
    this.update([])
  }

  update(points) {
    const { placed, borders } = layOut(points)
    this.element.hidden = placed.length < 2
    if (this.element.hidden) return
    const [low, high] = bounds(placed)
    const [first, last] = [placed[0].x, placed.at(-1).x]
    const x = (value) => (((value - first) / Math.max(1, last - first)) * WIDTH).toFixed(1)
    const y = (loss) => ((1 - (Math.min(loss, high) - low) / (high - low)) * (this.height - 4) + 2).toFixed(1)
    const path = (line) => line.map((point) => `${x(point.x)},${y(point.loss)}`).join(' ')
    const averaged = smooth(placed)
    this.raw.setAttribute('points', path(placed))
    this.mean.setAttribute('points', path(averaged))
    this.borders.replaceChildren(
      ...borders.map((border) =>
        svg('line', { x1: x(border), x2: x(border), y1: 0, y2: this.height, class: 'mlora-chart-border' })
      )
    )
    const now = averaged.at(-1)
    this.legend.textContent = `${now.stage}: loss ${now.loss.toPrecision(3)}`
    this.picture.setAttribute('aria-label', `Loss, smoothed: ${now.loss.toPrecision(3)} at step ${now.x}`)
  }
}

/** The scores that are drawn, in the words of the panel. */
export const SCORES = {
  motion_fidelity: 'motion fidelity',
  appearance_leakage: 'leakage',
  text_alignment: 'text alignment',
  consistency: 'consistency'
}
const DRAWN = ['motion_fidelity', 'appearance_leakage', 'text_alignment']

/** Every drawn score as [step, value] from the base at step 0 on; text alignment, whose scale differs, over the base's. */
export function curvesOf({ base, points }) {
  const all = [{ step: 0, scores: base }, ...points]
  const curves = {}
  for (const name of DRAWN) {
    const found = all.filter((point) => Number.isFinite(point.scores[name])).map((point) => [point.step, point.scores[name]])
    if (!found.length) continue
    const scale = name === 'text_alignment' && found[0][1] > 0 ? found[0][1] : 1
    curves[name] = found.map(([step, value]) => [step, value / scale])
  }
  return curves
}

/** Rows of a table: base first, the scores that there are as columns. */
export function tableOf({ base, points, best }) {
  const names = Object.keys(SCORES).filter((name) => [base, ...points.map((point) => point.scores)].some((one) => name in one))
  const cells = (scores) => names.map((name) => (Number.isFinite(scores[name]) ? scores[name].toFixed(2) : ''))
  return {
    head: ['step', ...names.map((name) => SCORES[name])],
    rows: [
      ['base', ...cells(base)],
      ...points.map(({ step, scores }) => [step === best?.step ? `${step}, best` : String(step), ...cells(scores)])
    ]
  }
}

/** What the rule says so far, in a sentence. */
export function bestText({ best, keep }) {
  if (!best) return ''
  return `best${keep === 'best' ? '' : ' (the last is kept)'}: ${best.reason}`
}

export class ValidationChart {
  /** @param {number} height in pixels of the drawing; 0 for the sentence alone */
  constructor(height = 88) {
    this.height = height
    this.grid = svg('g')
    this.best = svg('line', { class: 'mlora-chart-best', y1: 0, y2: height, 'vector-effect': 'non-scaling-stroke' })
    this.lines = svg('g')
    this.picture = svg('svg', {
      viewBox: `0 0 ${WIDTH} ${height}`,
      preserveAspectRatio: 'none',
      class: 'mlora-chart-picture',
      role: 'img'
    })
    this.picture.append(this.grid, this.best, this.lines)
    this.picture.style.height = `${height}px`
    this.legend = el('p', { class: 'mlora-chart-legend mlora-chart-keys' })
    this.high = el('span', {})
    this.low = el('span', {})
    this.end = el('span', {})
    this.sentence = el('p', { class: 'mlora-chart-legend' })
    const plot = el(
      'div',
      { class: 'mlora-chart-plot', hidden: !height },
      el('div', { class: 'mlora-chart-scale', 'aria-hidden': 'true' }, this.high, this.low),
      this.picture
    )
    const axis = el('div', { class: 'mlora-chart-axis', 'aria-hidden': 'true', hidden: !height }, el('span', { textContent: 'base' }), this.end)
    this.element = el('div', { class: 'mlora-chart', hidden: true }, this.legend, plot, axis, this.sentence)
    show(this.legend, height > 0)
  }

  /** @param {object|undefined} validation as the server tells it; none, or an empty one, hides the chart */
  update(validation) {
    const points = validation?.points ?? []
    show(this.element, points.length > 0)
    if (!points.length) return
    setText(this.sentence, bestText(validation))
    if (this.height) this.#draw(validation)
  }

  #draw(validation) {
    const curves = curvesOf(validation)
    const values = Object.values(curves).flatMap((curve) => curve.map(([, value]) => value))
    const [low, high] = [Math.min(0, ...values), Math.max(1, ...values)]
    const last = validation.points.at(-1)
    const x = (step) => ((step / last.step) * (WIDTH - 8) + 4).toFixed(1)
    const y = (value) => ((1 - (value - low) / (high - low)) * (this.height - 8) + 4).toFixed(1)
    const level = (value) =>
      svg('line', { x1: 0, x2: WIDTH, y1: y(value), y2: y(value), class: 'mlora-chart-border', 'vector-effect': 'non-scaling-stroke' })
    this.grid.replaceChildren(level(0), level(1))
    this.lines.replaceChildren(...Object.entries(curves).flatMap(([name, curve]) => this.#curve(name, curve, x, y)))
    const chosen = validation.best?.step
    this.best.style.display = chosen === undefined ? 'none' : ''
    this.best.setAttribute('x1', x(chosen ?? 0))
    this.best.setAttribute('x2', x(chosen ?? 0))
    setText(this.high, high.toFixed(high === 1 ? 0 : 1))
    setText(this.low, low.toFixed(low === 0 ? 0 : 1))
    setText(this.end, `step ${last.step}`)
    const now = Object.keys(curves).map((name) => [name, `${SCORES[name]} ${last.scores[name]?.toFixed(2) ?? ''}`])
    this.legend.replaceChildren(...now.map(([name, text]) => this.#key(name, text)))
    const said = now.map(([, text]) => text).join(', ')
    this.picture.setAttribute('aria-label', `Validation at step ${last.step}: ${said}; ${bestText(validation)}`)
  }

  /** A line with a dot at each checkpoint: a stroke without length stays round however the drawing is stretched. */
  #curve(name, curve, x, y) {
    const style = { class: `mlora-curve mlora-curve-${name}`, 'vector-effect': 'non-scaling-stroke' }
    const dots = curve.map(([step, value]) => `M${x(step)} ${y(value)}h0`).join('')
    return [
      svg('polyline', { ...style, points: curve.map(([step, value]) => `${x(step)},${y(value)}`).join(' ') }),
      svg('path', { ...style, class: `${style.class} mlora-curve-dots`, d: dots })
    ]
  }

  #key(name, text) {
    const swatch = svg('svg', { class: 'mlora-chart-key', viewBox: '0 0 18 8', 'aria-hidden': 'true' })
    swatch.append(svg('line', { x1: 0, x2: 18, y1: 4, y2: 4, class: `mlora-curve mlora-curve-${name}` }))
    return el('span', {}, swatch, text)
  }
}
