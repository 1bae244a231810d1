/** The browser's copy of the server's jobs: fetched once, then kept up to date by messages. */

export const ACTIVE = ['queued', 'running', 'yielding']
export const WITH_RESULT = ['done', 'stopped']
const MAX_POINTS = 4000
// A job at work in another server on the same folder sends no messages here: after so long a silence it is asked for.
const SILENCE = 10000

/** Adds new points; a step that was there already means that training took up a checkpoint, so the rest is cut. */
export function joined(known, fresh) {
  let points = known
  for (const point of fresh) {
    const last = points.at(-1)
    if (last && last[0] === point[0] && point[1] <= last[1]) {
      const cut = points.findIndex((old) => old[0] === point[0] && old[1] >= point[1])
      points = points.slice(0, cut)
    }
    points = [...points, point]
  }
  return points.length > MAX_POINTS ? points.filter((_, index) => index % 2 === 0) : points
}

export class Jobs extends EventTarget {
  constructor(api) {
    super()
    this.api = api
    this.byId = new Map()
    this.loaded = false
    this.problem = ''
    this.heard = 0
  }

  /** Newest first. */
  get all() {
    return [...this.byId.values()].sort((a, b) => b.created - a.created)
  }

  /** Read everything anew: at the start, and when the connection comes back. */
  async fetch() {
    this.heard = Date.now()
    try {
      const { jobs } = await this.#ask('/motion_lora/jobs')
      this.byId = new Map(jobs.map((job) => [job.id, job]))
      this.loaded = true
      this.problem = ''
    } catch (error) {
      this.problem = error.message
    }
    this.dispatchEvent(new CustomEvent('changed', { detail: { first: true } }))
  }

  /** Ask anew while a job is at work of which nothing was heard for a while. */
  async lookAgain(now = Date.now()) {
    if (now - this.heard > SILENCE && this.all.some((job) => ACTIVE.includes(job.state))) await this.fetch()
  }

  /** One job with its whole curve and the metadata of its file. */
  details(id) {
    return this.#ask(`/motion_lora/jobs/${encodeURIComponent(id)}`)
  }

  /** pause, resume, stop, cancel, delete or continue. Throws with the server's sentence when it is refused. */
  command(name, id, more = {}) {
    return this.#ask(`/motion_lora/jobs/${name}`, {
      method: 'POST',
      headers: { 'Content-Type': 'application/json' },
      body: JSON.stringify({ id, ...more })
    })
  }

  /** What a node with these widgets will do. */
  plan(asked) {
    return this.#ask('/motion_lora/plan', {
      method: 'POST',
      headers: { 'Content-Type': 'application/json' },
      body: JSON.stringify(asked)
    })
  }

  previewUrl(job, name) {
    return this.api.apiURL(`/motion_lora/jobs/${encodeURIComponent(job.id)}/previews/${encodeURIComponent(name)}`)
  }

  /** The validation curve as a file, "csv" or "png". */
  curveUrl(job, ending) {
    return this.api.apiURL(`/motion_lora/jobs/${encodeURIComponent(job.id)}/validation.${ending}`)
  }

  /** A message of the server: statuses as they are now, only the new points of the losses, and
   * validations where there is a new one. */
  apply(message) {
    this.heard = Date.now()
    const before = new Map(this.byId)
    for (const { new_losses: fresh = [], ...change } of message.jobs) {
      if (change.deleted) {
        this.byId.delete(change.id)
        continue
      }
      const known = this.byId.get(change.id)
      this.byId.set(change.id, { ...known, ...change, losses: joined(known?.losses ?? [], fresh) })
    }
    this.dispatchEvent(new CustomEvent('changed', { detail: { before, ids: message.jobs.map((job) => job.id) } }))
  }

  async #ask(path, options) {
    const answer = await this.api.fetchApi(path, options)
    const body = await answer.json().catch(() => ({}))
    if (!answer.ok) throw Object.assign(new Error(body.error ?? `the server answered ${answer.status}`), { refused: true })
    return body
  }
}
