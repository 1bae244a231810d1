/** The sidebar panel: cards of all jobs, active ones first. */

import { JobCard } from './card.js'
import { el, setText, show } from './dom.js'
import { ACTIVE } from './jobs.js'

export class Panel {
  /** @param {object} jobs see jobs.js  @param {(command, job) => Promise<void>} act */
  constructor(jobs, act) {
    this.jobs = jobs
    this.act = act
    this.cards = new Map()
    this.said = el('p', { class: 'mlora-said', role: 'status', 'aria-live': 'polite' })
    this.empty = el(
      'div',
      { class: 'mlora-empty', hidden: true },
      el('p', { textContent: 'No trainings yet.' }),
      el('p', {
        textContent:
          'Open Templates, ComfyUI-MotionLoRA, quickstart, and press Run: it trains on the built-in model in a few minutes. ' +
          'Every training shows here, also after a restart.'
      })
    )
    this.active = this.#section('Running and waiting')
    this.finished = this.#section('Paused and finished')
    this.element = el(
      'div',
      { class: 'mlora-panel' },
      el('h2', { textContent: 'Motion LoRA' }),
      this.said,
      this.empty,
      this.active.element,
      this.finished.element
    )
    this.listener = () => this.update()
    jobs.addEventListener('changed', this.listener)
    this.update()
  }

  destroy() {
    this.jobs.removeEventListener('changed', this.listener)
  }

  update() {
    const all = this.jobs.all
    setText(this.said, this.jobs.problem || (this.jobs.loaded ? '' : 'Loading...'))
    show(this.said, Boolean(this.said.textContent))
    show(this.empty, this.jobs.loaded && !all.length)
    this.#fill(this.active, all.filter((job) => ACTIVE.includes(job.state)))
    this.#fill(this.finished, all.filter((job) => !ACTIVE.includes(job.state)))
    for (const [id, card] of this.cards) {
      if (this.jobs.byId.has(id)) continue
      card.element.remove()
      this.cards.delete(id)
    }
    // Only now: a card that moves out of a hidden section would have lost the focus.
    for (const { list, element } of [this.active, this.finished]) show(element, list.children.length > 0)
  }

  #section(title) {
    const list = el('div', { class: 'mlora-list' })
    return { list, element: el('section', { 'aria-label': title, hidden: true }, el('h4', { textContent: title }), list) }
  }

  #fill(section, jobs) {
    if (jobs.length) show(section.element, true)
    const wanted = jobs.map((job) => this.#card(job).element)
    wanted.forEach((element, index) => {
      if (section.list.children[index] === element) return
      const focused = element.contains(document.activeElement) ? document.activeElement : null
      section.list.insertBefore(element, section.list.children[index] ?? null)
      focused?.focus()
    })
  }

  #card(job) {
    const known = this.cards.get(job.id)
    if (known) {
      known.update(job)
      return known
    }
    const card = new JobCard(job, this.act, {
      previewUrl: (one, name) => this.jobs.previewUrl(one, name),
      curveUrl: (one, ending) => this.jobs.curveUrl(one, ending),
      details: (id) => this.jobs.details(id)
    })
    this.cards.set(job.id, card)
    return card
  }
}
