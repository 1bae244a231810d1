/** One job as a card: used in the panel and, smaller, inside the train nodes. Updates in place, so focus stays. */

import { LossChart, tableOf, ValidationChart } from './chart.js'
import { duration, el, setText, show, speed } from './dom.js'
import { ACTIVE, WITH_RESULT } from './jobs.js'

const STATES = {
  queued: 'waiting',
  running: 'training',
  yielding: 'stepped aside',
  paused: 'paused',
  interrupted: 'interrupted',
  stopped: 'stopped, saved',
  done: 'done',
  cancelled: 'cancelled',
  failed: 'failed'
}
const SHEET = 'sheet.png'
const COMMANDS = { pause: 'pausing', interrupt: 'interrupting', stop: 'saving', cancel: 'cancelling', yield: 'stepping aside' }

/** Which buttons a job has; each a command with its label. */
export function actionsFor(job) {
  const begun = job.done_steps > 0
  if (ACTIVE.includes(job.state)) {
    return [
      job.command === 'pause' ? ['resume', 'Resume'] : ['pause', 'Pause'],
      ...(begun ? [['stop', 'Stop and save']] : []),
      ['cancel', 'Cancel']
    ]
  }
  const made = [['add', 'Add to graph'], ...(job.kind === 'motion-lora' ? [['compare', 'Compare with base']] : [])]
  if (job.state === 'done') return [...made, ['delete', 'Delete']]
  if (job.state === 'stopped') return [...made, ['resume', 'Go on'], ['delete', 'Delete']]
  const again = job.state === 'paused' || job.state === 'interrupted' ? 'Resume' : 'Retry'
  return [
    ['resume', again],
    ...(begun && job.state !== 'cancelled' ? [['stop', 'Save as it is']] : []),
    ['delete', 'Delete']
  ]
}

/** "step 120 of 300 · 2.1 steps/s · 1:25 left" */
export function progressText(job) {
  const running = job.state === 'running'
  const parts = [`step ${job.done_steps} of ${job.all_steps}`]
  if (running && job.rate) parts.push(speed(job.rate))
  if (running && job.eta !== null && job.eta !== undefined) parts.push(`${duration(job.eta)} left`)
  if (!running && job.seconds) parts.push(duration(job.seconds))
  return parts.join(' · ')
}

export function stateText(job) {
  return job.command ? COMMANDS[job.command] ?? STATES[job.state] : STATES[job.state] ?? job.state
}

export class JobCard {
  /**
   * @param {(command: string, job: object) => Promise<void>} act carries out a button's command
   * @param {object} options `compact` for the card in a node; `previewUrl(job, name)`; `curveUrl(job, ending)`;
   *   `details(id)`
   */
  constructor(job, act, { compact = false, previewUrl, curveUrl, details }) {
    this.act = act
    this.previewUrl = previewUrl
    this.curveUrl = curveUrl
    this.fetchDetails = details
    this.compact = compact
    this.chart = new LossChart(compact ? 44 : 72)
    this.validation = new ValidationChart(compact ? 0 : 88)
    this.scores = compact ? null : this.#makeScores()
    this.title = el('h3', { class: 'mlora-name' })
    this.badge = el('span', { class: 'mlora-badge' })
    this.about = el('p', { class: 'mlora-about' })
    this.bar = el('div', { class: 'mlora-bar-fill' })
    this.progress = el(
      'div',
      { class: 'mlora-bar', role: 'progressbar', 'aria-valuemin': '0', 'aria-label': 'Training steps' },
      this.bar
    )
    this.numbers = el('p', { class: 'mlora-numbers' })
    this.message = el('p', { class: 'mlora-message' })
    this.problem = el('p', { class: 'mlora-problem', role: 'alert', hidden: true })
    this.previews = compact ? null : this.#makePreviews()
    this.buttons = el('div', { class: 'mlora-buttons' })
    this.continues = compact ? null : this.#makeContinues()
    this.details = compact ? null : this.#makeDetails()
    this.element = el(
      'article',
      { class: `mlora-card${compact ? ' mlora-compact' : ''}`, 'data-id': job.id },
      el('header', {}, this.title, this.badge),
      compact ? null : this.about,
      this.progress,
      this.numbers,
      this.chart.element,
      this.validation.element,
      this.scores,
      this.previews,
      this.message,
      this.problem,
      this.continues,
      this.buttons,
      this.details
    )
    this.update(job)
  }

  update(job) {
    this.job = job
    setText(this.title, job.name)
    this.title.title = job.name
    setText(this.badge, stateText(job))
    this.badge.dataset.state = job.state
    setText(this.about, [job.settings?.method, job.base, job.device].filter(Boolean).join(' · '))
    const percent = job.all_steps ? (100 * job.done_steps) / job.all_steps : 0
    this.bar.style.width = `${job.state === 'done' ? 100 : percent}%`
    this.progress.setAttribute('aria-valuenow', job.done_steps)
    this.progress.setAttribute('aria-valuemax', job.all_steps)
    setText(this.numbers, progressText(job))
    setText(this.message, job.message ?? '')
    show(this.message, Boolean(job.message))
    this.message.classList.toggle('mlora-failed', job.state === 'failed')
    this.chart.update(job.losses ?? [])
    this.validation.update(job.validation)
    this.#updateButtons(job)
    if (this.compact) return
    this.#updateScores(job)
    this.#updatePreviews(job)
    this.continueBox.checked = job.continues !== null && job.continues !== undefined
    show(this.continues, ACTIVE.includes(job.state) && (this.continueBox.checked || this.offered))
    this.offered ||= this.continueBox.checked
    show(this.details, WITH_RESULT.includes(job.state))
  }

  /** Buttons are kept while their set stays the same, so that the focused one stays focused. */
  #updateButtons(job) {
    const actions = actionsFor(job)
    const late = WITH_RESULT.includes(job.state) && job.continues !== null && job.continues !== undefined
    if (late) actions.unshift(['continue', 'Continue workflow'])
    const wanted = JSON.stringify(actions)
    if (this.shownActions === wanted) return
    this.shownActions = wanted
    const focused = document.activeElement?.dataset?.command
    const hadFocus = this.buttons.contains(document.activeElement)
    this.buttons.replaceChildren(...actions.map(([command, label]) => this.#button(command, label)))
    if (hadFocus) {
      const again = this.buttons.querySelector(`[data-command="${focused}"]`) ?? this.buttons.querySelector('button')
      again?.focus()
    }
  }

  #button(command, label) {
    const button = el('button', {
      type: 'button',
      class: `mlora-button mlora-${command}`,
      textContent: label,
      'data-command': command,
      'aria-label': `${label}: ${this.job.name}`,
      onclick: () => this.#press(button, command, label)
    })
    return button
  }

  /** What cannot be undone asks once more, in the button itself. */
  async #press(button, command, label) {
    const drastic = command === 'delete' || (command === 'cancel' && this.job.done_steps > 0)
    if (drastic && button.dataset.asked !== 'yes') {
      button.dataset.asked = 'yes'
      setText(button, command === 'delete' ? 'Really delete?' : 'Throw away?')
      setTimeout(() => {
        button.dataset.asked = ''
        setText(button, label)
      }, 4000)
      return
    }
    // A button that is really disabled would lose the focus.
    if (this.busy) return
    this.busy = true
    button.setAttribute('aria-disabled', 'true')
    show(this.problem, false)
    try {
      const made = await this.act(command, this.job)
      if (command === 'compare') this.#showComparison(made)
    } catch (error) {
      setText(this.problem, error.message)
      show(this.problem, true)
    } finally {
      this.busy = false
      button.removeAttribute('aria-disabled')
    }
  }

  /** Base and LoRA beside each other, in the place of the previews. */
  #showComparison(url) {
    this.compared ??= el('video', { muted: true, loop: true, autoplay: true, controls: true, class: 'mlora-video' })
    this.compared.src = url
    this.compared.setAttribute('aria-label', `Base and ${this.job.name} beside each other`)
    this.buttons.before(this.compared)
  }

  #makePreviews() {
    this.video = el('video', { muted: true, loop: true, autoplay: true, controls: true, class: 'mlora-video' })
    this.video.setAttribute('playsinline', '')
    this.slider = el('input', {
      type: 'range',
      min: 0,
      step: 1,
      'aria-label': 'Which preview',
      oninput: () => {
        this.follows = Number(this.slider.value) === Number(this.slider.max)
        this.#play(this.names[Number(this.slider.value)])
      }
    })
    this.previewLabel = el('span', {})
    this.open = el('a', { target: '_blank', rel: 'noopener', textContent: 'open' })
    this.names = []
    this.follows = true
    this.sheet = el('img', { class: 'mlora-sheet', alt: 'Frames of the reference, of the base and of each preview' })
    this.sheet.addEventListener('error', () => show(this.sheet, false))
    this.sheet.addEventListener('load', () => show(this.sheet, true))
    return el(
      'div',
      { class: 'mlora-previews', hidden: true },
      this.sheet,
      this.video,
      el('div', { class: 'mlora-preview-line' }, this.slider, this.previewLabel, this.open)
    )
  }

  #updatePreviews(job) {
    const names = [...(job.previews ?? [])].sort()
    if (names.length === this.names.length && names.every((name, index) => name === this.names[index])) return
    this.names = names
    show(this.previews, names.length > 0)
    if (!names.length) return
    // The same file grows; its address says how far it is.
    this.sheet.src = `${this.previewUrl(job, SHEET)}?${names.at(-1)}`
    this.slider.max = names.length - 1
    show(this.slider, names.length > 1)
    if (this.follows) this.slider.value = names.length - 1
    this.#play(names[Number(this.slider.value)])
  }

  #play(name) {
    if (!name || this.playing === name) return
    this.playing = name
    const url = this.previewUrl(this.job, name)
    // For want of an encoder a preview is an animated picture, which a video shows as its poster.
    const plays = name.endsWith('.mp4')
    this.video.poster = plays ? '' : url
    if (plays) this.video.src = url
    else this.video.removeAttribute('src')
    this.open.href = url
    this.open.setAttribute('aria-label', `Open the preview at step ${parseInt(name, 10)} in a new tab`)
    setText(this.previewLabel, `step ${parseInt(name, 10)}`)
    this.video.setAttribute('aria-label', `Preview at step ${parseInt(name, 10)}: ${this.job.preview_prompt}`)
    this.slider.setAttribute('aria-valuetext', `step ${parseInt(name, 10)}`)
  }

  /** The validations in figures: what the curves show, for keyboards, screen readers and spreadsheets. */
  #makeScores() {
    this.table = el('table', { class: 'mlora-table' })
    this.judged = el('p', { class: 'mlora-about' })
    this.files = ['csv', 'png'].map((ending) =>
      el('a', { target: '_blank', rel: 'noopener', textContent: `validation.${ending}` })
    )
    return el(
      'details',
      { class: 'mlora-details', hidden: true },
      el('summary', { textContent: 'Validations' }),
      this.table,
      this.judged,
      el('p', { class: 'mlora-files' }, ...this.files)
    )
  }

  #updateScores(job) {
    const shown = job.validation ?? {}
    show(this.scores, Boolean(shown.points?.length))
    if (!shown.points?.length || this.scored === shown) return
    this.scored = shown
    const { head, rows } = tableOf(shown)
    const line = (tag, cells, scope) =>
      el('tr', {}, ...cells.map((text, index) => el(index && tag === 'td' ? 'td' : 'th', { textContent: text, scope: index ? scope : scope ?? 'row' })))
    this.table.replaceChildren(
      el('thead', {}, line('th', head, 'col')),
      el('tbody', {}, ...rows.map((cells) => line('td', cells)))
    )
    setText(this.judged, (shown.notes ?? []).join('; '))
    for (const [index, ending] of ['csv', 'png'].entries()) this.files[index].href = this.curveUrl(job, ending)
  }

  #makeContinues() {
    this.continueBox = el('input', {
      type: 'checkbox',
      onchange: () => {
        if (!this.continueBox.checked) this.act('forget', this.job)
        else this.continueBox.checked = false
      }
    })
    return el('label', { class: 'mlora-continues', hidden: true }, this.continueBox, 'continue the workflow when done')
  }

  #makeDetails() {
    this.facts = el('dl', { class: 'mlora-facts' })
    const details = el('details', { class: 'mlora-details', hidden: true }, el('summary', { textContent: 'Details' }), this.facts)
    details.addEventListener('toggle', () => details.open && this.#fillDetails())
    return details
  }

  async #fillDetails() {
    const job = await this.fetchDetails(this.job.id).catch((error) => ({ metadata: { problem: error.message } }))
    const facts = factsOf(this.job, job.metadata ?? {})
    this.facts.replaceChildren(
      ...facts.flatMap(([name, value]) => [el('dt', { textContent: name }), el('dd', { textContent: value })])
    )
  }
}

/** What a user wants to know of a finished file, in words. */
export function factsOf(job, metadata) {
  const own = (name) => metadata[`motion_lora.${name}`]
  const list = (name) => {
    try {
      return JSON.parse(own(name) ?? '[]').join('; ')
    } catch {
      return ''
    }
  }
  const facts = [
    ['File', job.published],
    ['Problem', metadata.problem],
    ['Captions', list('captions')],
    ['Trigger words', metadata['modelspec.trigger_phrase'] || list('trigger_words')],
    ['Method', own('method')],
    ['Base', own('base_name')],
    ['Rank', own('rank')],
    ['Layers', own('layers')],
    ['Steps', own('steps')],
    ['Learning rate', own('learning_rate')],
    ['Seed', own('seed')],
    ['Size', own('width') && `${own('width')} x ${own('height')}, ${own('num_frames')} frames`],
    ['Trained in', duration(job.seconds)]
  ]
  return facts.filter(([, value]) => value)
}
