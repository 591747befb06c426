// Texts that do not stand out (WCAG 2.2, 1.4.3): each text with the background that its ancestors give it. Returns {looked, found}.
() => {
  const canvas = new OffscreenCanvas(1, 1).getContext('2d', {willReadFrequently: true})
  const known = new Map()
  const rgba = c => { if (!known.has(c)) known.set(c, drawn(c)); return known.get(c) }
  const drawn = c => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = c; canvas.fillRect(0, 0, 1, 1); const d = canvas.getImageData(0, 0, 1, 1).data; return [d[0], d[1], d[2], d[3] / 255] }
  const over = (a, b) => [0, 1, 2].map(i => a[i] * a[3] + b[i] * (1 - a[3])).concat(1)
  const light = c => { const [r, g, b] = c.map(v => v / 255).map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4); return .2126 * r + .7152 * g + .0722 * b }
  const page = getComputedStyle(document.body).colorScheme, dark = matchMedia('(prefers-color-scheme: dark)').matches
  const back = e => { const layers = []; for (; e; e = e.parentElement) layers.unshift(rgba(getComputedStyle(e).backgroundColor)); return layers.reduce((a, l) => over(l, a), dark && /dark/.test(page) ? [18, 18, 18, 1] : [255, 255, 255, 1]) }
  const found = new Map(); let looked = 0
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT)
  for (let n; n = walk.nextNode();) {
    const e = n.parentElement, s = getComputedStyle(e)
    if (!n.data.trim() || e.closest('script,style,noscript,[hidden],.md-search__scrollwrap') || !e.checkVisibility({checkOpacity: true, checkVisibilityCSS: true})) continue
    const b = back(e), fg = e.closest('svg') && s.fill != 'none' && e.closest('text') ? s.fill : s.color
    const [x, y] = [light(over(rgba(fg), b)), light(b)].sort((p, q) => q - p), ratio = (x + .05) / (y + .05)
    const large = parseFloat(s.fontSize) >= 24 || (parseFloat(s.fontSize) >= 18.66 && s.fontWeight >= 700)
    looked++
    if (ratio < (large ? 3 : 4.5)) found.set(`${e.tagName}.${e.getAttribute('class')} ${fg}`, `${ratio.toFixed(2)} '${n.data.trim().slice(0, 30)}'`)
  }
  return {looked, found: [...found].map(f => f.join(': '))}
}
