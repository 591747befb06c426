// Flaws of a page in its structure: headings, texts of images, formulas. Returns {found, formulas, images}.
async () => {
  const found = [], all = q => [...document.querySelectorAll(q)]
  const levels = all('h1,h2,h3,h4,h5,h6').filter(h => !h.closest('nav,[role=dialog]')).map(h => +h.tagName[1])
  if (levels.filter(l => l == 1).length != 1 || levels[0] != 1) found.push('headings: ' + levels)
  levels.forEach((l, i) => { if (i && l > levels[i - 1] + 1) found.push(`h${levels[i - 1]} is followed by h${l}`) })
  if (!document.documentElement.lang || !document.title) found.push('no language or title')
  for (const img of all('img')) {
    if (!(img.alt || '').trim() || /No description/.test(img.alt)) found.push('no alt text: ' + img.src.slice(0, 80))
    img.loading = 'eager'
    await img.decode().catch(() => found.push('not loaded: ' + img.src.slice(0, 80)))
  }
  for (const svg of all('main svg[role=img], figure svg')) {
    if (!svg.getAttribute('aria-label') && !svg.querySelector('title')) found.push('svg without a text')
    if (svg.getBoundingClientRect().height < 50) found.push('svg is not drawn')
  }
  const prose = document.querySelector('article, main, body').cloneNode(true)
  prose.querySelectorAll('pre, code, script, style, math, table').forEach(e => e.remove())
  for (const raw of prose.textContent.match(/\$\$|\\\(|\\\[|\\frac|\{ ?[:.#][^}]*\}|^#+ |\]\(/gm) || []) found.push('markup that was not rendered: ' + raw)
  for (const m of all('math')) if (!m.getBoundingClientRect().width || m.querySelector('merror')) found.push('formula: ' + m.getAttribute('alttext'))
  return {found, formulas: all('math').length, images: all('img').length}
}
