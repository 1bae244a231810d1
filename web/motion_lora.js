/** The browser side of ComfyUI-MotionLoRA: the jobs panel, cards in train nodes, and workflows that go on by themselves. */

import { api } from '../../scripts/api.js'
import { app } from '../../scripts/app.js'
import { compareWithBase } from './lib/comparison.js'
import { addJobWidget, addPlanWidget, addToGraph, foldAdvanced, markPreview, TRAIN_NODES } from './lib/graph.js'
import { ACTIVE, Jobs, WITH_RESULT } from './lib/jobs.js'
import { Panel } from './lib/panel.js'
import { Planner, PLANNED } from './lib/plan.js'
import { showProblems } from './lib/problem.js'

const NAME = 'MotionLoRA.Jobs'
const TAB = 'motion-lora'
const LOOKS_AGAIN_EVERY = 2000
// A page that did not ask for the job leaves it to the one that did for so long.
const OTHER_PAGE_WAITS = 4000
// A workflow whose training ended longer ago than this is only offered to go on.
const GOES_ON_BY_ITSELF_FOR = 3600

const jobs = new Jobs(api)
const planner = new Planner((asked) => jobs.plan(asked))
const claimed = new Set()

function toast(severity, summary, detail) {
  app.extensionManager?.toast?.add?.({ severity, summary, detail, life: 6000 })
}

/** Carries out a button of a card. */
async function act(command, job) {
  if (command === 'add') return addToGraph(app, job)
  if (command === 'compare') return compareWithBase(api, jobs, job)
  if (command === 'continue') return goOn(job)
  if (command === 'forget') return jobs.command('continue', job.id, { wanted: false })
  await jobs.command(command, job.id)
}

/** Queues the workflow that waits for this job; of several open pages the server lets one have it. */
async function goOn(job) {
  const { continuation } = await jobs.command('continue', job.id)
  if (!continuation) return
  await api.queuePrompt(0, { output: continuation.prompt, workflow: continuation.workflow })
  toast('info', 'Motion LoRA', `${job.name}: the workflow goes on`)
}

function mayGoOn(job, sawItRun) {
  if (!WITH_RESULT.includes(job.state) || typeof job.continues !== 'string' || claimed.has(job.id)) return false
  return sawItRun || Date.now() / 1000 - job.finished < GOES_ON_BY_ITSELF_FOR
}

function goOnSoon(job) {
  claimed.add(job.id)
  const own = job.continues === api.clientId
  const begin = () => {
    // Meanwhile another page may have taken it, or the user deleted the job.
    if (typeof jobs.byId.get(job.id)?.continues !== 'string') return
    goOn(job).catch((error) => toast('error', 'Motion LoRA', `${job.name}: ${error.message}`))
  }
  setTimeout(begin, own ? 0 : OTHER_PAGE_WAITS)
}

function announce(job, before) {
  if (!before || before.state === job.state || !ACTIVE.includes(before.state)) return
  if (job.state === 'done') toast('success', 'Motion LoRA', `${job.name} is trained`)
  if (job.state === 'stopped') toast('success', 'Motion LoRA', `${job.name} is saved as it is`)
  if (job.state === 'failed') toast('error', 'Motion LoRA', `${job.name}: ${job.message}`)
}

jobs.addEventListener('changed', ({ detail }) => {
  const ids = detail.first ? [...jobs.byId.keys()] : detail.ids
  for (const job of ids.map((id) => jobs.byId.get(id)).filter(Boolean)) {
    const before = detail.before?.get(job.id)
    announce(job, before)
    if (mayGoOn(job, Boolean(before))) goOnSoon(job)
  }
})

function addStyle() {
  const link = document.createElement('link')
  link.rel = 'stylesheet'
  link.href = new URL('./motion_lora.css', import.meta.url).href
  document.head.append(link)
}

function addTab() {
  let panel = null
  const tab = {
    id: TAB,
    icon: 'pi pi-video',
    title: 'Motion LoRA',
    label: 'Motion',
    tooltip: 'Motion LoRA trainings',
    type: 'custom',
    render: (element) => {
      panel?.destroy()
      panel = new Panel(jobs, act)
      element.replaceChildren(panel.element)
    },
    destroy: () => {
      panel?.destroy()
      panel = null
    }
  }
  const manager = app.extensionManager
  const register = manager.sidebarTab?.registerSidebarTab ?? manager.registerSidebarTab
  register.call(manager.sidebarTab ?? manager, tab)
}

const extension = {
  name: NAME,
  commands: [
    {
      id: 'MotionLoRA.TogglePanel',
      icon: 'pi pi-video',
      label: 'Show or hide the Motion LoRA trainings',
      function: () => app.extensionManager.command.execute(`Workspace.ToggleSidebarTab.${TAB}`)
    }
  ],
  async setup() {
    addStyle()
    addTab()
    planner.start()
    showProblems(app, api)
    api.addEventListener('motion_lora.jobs', ({ detail }) => jobs.apply(detail))
    api.addEventListener('reconnected', () => jobs.fetch())
    setInterval(() => document.hidden || jobs.lookAgain(), LOOKS_AGAIN_EVERY)
    await jobs.fetch()
  },
  nodeCreated(node) {
    markPreview(node)
    if (TRAIN_NODES.includes(node.comfyClass)) addJobWidget(app, jobs, act, planner, node)
    else if (node.comfyClass in PLANNED) addPlanWidget(planner, node)
    if (node.comfyClass?.startsWith('MotionLoRA_')) foldAdvanced(node)
  }
}

// A host that serves this folder under two names loads this file twice.
if (!app.extensions?.some?.((one) => one.name === NAME)) app.registerExtension(extension)
