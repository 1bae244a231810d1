/** A loss curve as SVG: every step faintly, an exponential average boldly, stages divided by a line. */

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
