/** Small helpers for making and updating elements. No side effects: ComfyUI imports every .js file of a pack. */

/**
 * An element with properties, attributes (`aria-label`, `data-id` ...), listeners (`onclick`) and children.
 * Text is always set as text, never as HTML.
 */
export function el(tag, properties = {}, ...children) {
  const element = document.createElement(tag)
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null) continue
    if (name === 'class') element.className = value
    else if (name.startsWith('on')) element.addEventListener(name.slice(2), value)
    else if (name.includes('-') || name === 'role') element.setAttribute(name, value)
    else element[name] = value
  }
  element.append(...children.filter((child) => child !== null && child !== undefined))
  return element
}

/** Sets text only when it changed, so that screen readers and selections are left in peace. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text
}

/** Shows or hides without touching the layout of the others. */
export function show(element, visible) {
  if (element.hidden === visible) element.hidden = !visible
}

/** 75 -> "1:15", 3700 -> "1:01:40". */
export function duration(seconds) {
  if (!Number.isFinite(seconds)) return ''
  const whole = Math.max(0, Math.round(seconds))
  const [hours, minutes, rest] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60]
  const two = (number) => String(number).padStart(2, '0')
  return hours ? `${hours}:${two(minutes)}:${two(rest)}` : `${minutes}:${two(rest)}`
}

/** Steps per second, or seconds per step where that is the larger number. */
export function speed(rate) {
  if (!rate) return ''
  return rate < 1 ? `${(1 / rate).toFixed(1)} steps/s` : `${rate.toFixed(1)} s/step`
}
