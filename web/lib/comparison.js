/** A finished LoRA beside its base, in one click: a small prompt of its own, which leaves the user's graph alone. */

const PLAYGROUND = 'playground (built-in)'
const COMPOSED = 'checkpoint + motion module (AnimateDiff)'
const PATIENCE = 30 * 60 * 1000
// Ids that no node of a graph has.
const LAST = 'motion_lora_beside'

const node = (type, inputs) => ({ class_type: `MotionLoRA_${type}`, inputs })

/** The base by the loader's inputs; one that is put together is named by its two files. */
function baseOf(job) {
  const [checkpoint, ...modules] = (job.base ?? '').split(' + ')
  if (!modules.length) return { model: job.base || PLAYGROUND }
  return { model: COMPOSED, checkpoint, motion_module: modules.join(' + ') }
}

/** The prompt for the server: the same words and noise without and with the LoRA. */
export function comparison(job, words) {
  const sampled = (more) =>
    node('SampleVideo', {
      base_model: ['motion_lora_base', 0],
      prompt: words,
      negative_prompt: '',
      num_frames: 0,
      width: 0,
      height: 0,
      num_inference_steps: 25,
      guidance_scale: 0,
      scheduler: 'ddim',
      seed: 7,
      fps: 0,
      decode: true,
      ...more
    })
  return {
    motion_lora_base: node('LoadT2VModel', { ...baseOf(job), dtype: 'auto', download: false }),
    motion_lora_file: node('LoadMotionLoRA', { lora_name: job.published }),
    motion_lora_stack: node('MotionLoRAStack', { motion_lora: ['motion_lora_file', 0], strength: 1 }),
    motion_lora_plain: sampled({}),
    motion_lora_moved: sampled({ stack: ['motion_lora_stack', 0] }),
    [LAST]: node('SideBySide', {
      left: ['motion_lora_plain', 0],
      right: ['motion_lora_moved', 0],
      left_label: 'base',
      right_label: job.name,
      fps: 8
    }),
    motion_lora_shown: { class_type: 'PreviewImage', inputs: { images: [LAST, 0] } }
  }
}

/** The words to compare in: the previews', else the clip's own caption. */
async function wordsOf(jobs, job) {
  if (job.preview_prompt?.trim()) return job.preview_prompt
  const { metadata } = await jobs.details(job.id)
  const captions = JSON.parse(metadata?.['motion_lora.captions'] ?? '[]')
  if (!captions.length) throw new Error('The file names no caption: use Add to graph, and a prompt of your own.')
  return captions[0]
}

/** Resolves with the address of the video, or throws with why there is none. */
export async function compareWithBase(api, jobs, job) {
  const words = await wordsOf(jobs, job)
  const made = new Promise((done, failed) => {
    const stop = () => {
      clearTimeout(timer)
      api.removeEventListener('executed', hear)
      api.removeEventListener('execution_error', fail)
    }
    const hear = ({ detail }) => {
      if (detail.node !== LAST || !detail.output?.images?.length) return
      stop()
      const { filename, subfolder, type } = detail.output.images[0]
      done(api.apiURL(`/view?${new URLSearchParams({ filename, subfolder: subfolder ?? '', type })}`))
    }
    const fail = ({ detail }) => {
      if (!String(detail.node_id).startsWith('motion_lora_')) return
      stop()
      failed(new Error(detail.exception_message))
    }
    const timer = setTimeout(() => {
      stop()
      failed(new Error('The comparison did not end within half an hour.'))
    }, PATIENCE)
    api.addEventListener('executed', hear)
    api.addEventListener('execution_error', fail)
  })
  // Nobody may be waiting yet when it fails.
  made.catch(() => {})
  await api.queuePrompt(0, { output: comparison(job, words), workflow: { nodes: [], links: [], version: 0.4 } })
  return made
}
