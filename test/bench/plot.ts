export interface Series {
  readonly name: string
  readonly points: readonly { readonly offered: number; readonly throughput: number; readonly p99: number }[]
}

// Colours that differ in lightness too, on a white ground of their own: the page around may be dark.
const COLOURS = ['#0b5394', '#38761d', '#b45f06', '#cc0000']
const WIDTH = 380
const HEIGHT = 240
const LEFT = 60
const TOP = 40

/** Two charts side by side (SVG): throughput, and p99 on a logarithmic scale, over offered load. */
export function plot(series: readonly Series[]): string {
  const all = series.flatMap(({ points }) => points)
  const most = Math.max(...all.map(({ offered }) => offered))
  const top = Math.max(...all.map(({ throughput }) => throughput))
  const x = (offered: number): number => (offered / most) * WIDTH
  const linear = (value: number): number => HEIGHT - (value / top) * HEIGHT
  const [low, high] = [0, Math.ceil(Math.log10(Math.max(...all.map(({ p99 }) => p99))))]
  const logarithmic = (value: number): number =>
    HEIGHT - ((Math.log10(Math.max(value, 1)) - low) / (high - low)) * HEIGHT
  const decades = Array.from({ length: high - low + 1 }, (_, power) => 10 ** (low + power))
  const thousands = Array.from({ length: Math.floor(top / 500) + 1 }, (_, step) => step * 500)
  const offered = Array.from({ length: Math.floor(most / 1000) + 1 }, (_, step) => step * 1000)
  const total = 2 * (WIDTH + LEFT) + 50
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${total} ${HEIGHT + 130}" font-family="sans-serif" font-size="12">
<rect width="100%" height="100%" fill="#fff"/>
${chart(
  LEFT,
  'messages/s that came through',
  offered,
  x,
  thousands,
  linear,
  series.map(({ points }) => points.map((point) => [x(point.offered), linear(point.throughput)])),
)}
${chart(
  2 * LEFT + WIDTH + 20,
  'p99 in ms, from when a message was due',
  offered,
  x,
  decades,
  logarithmic,
  series.map(({ points }) => points.map((point) => [x(point.offered), logarithmic(point.p99)])),
)}
${legend(series)}
</svg>
`
}

/** One chart (SVG) of something over time, from 0 on. */
export function timeline(
  across: string,
  up: string,
  series: readonly { readonly name: string; readonly points: readonly (readonly [number, number])[] }[],
): string {
  const all = series.flatMap(({ points }) => points)
  const [right, top] = [Math.max(...all.map(([at]) => at)), Math.max(...all.map(([, value]) => value)) * 1.1]
  const x = (at: number): number => (at / right) * WIDTH
  const y = (value: number): number => HEIGHT - (value / top) * HEIGHT
  const steps = (most: number): number[] => {
    const step = [1, 2, 5, 10, 20, 50, 100, 200, 500].find((size) => most / size <= 7) ?? 1000
    return Array.from({ length: Math.floor(most / step) + 1 }, (_, index) => index * step)
  }
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH + 2 * LEFT} ${HEIGHT + 130}" font-family="sans-serif" font-size="12">
<rect width="100%" height="100%" fill="#fff"/>
${chart(
  LEFT,
  up,
  steps(right),
  x,
  steps(top),
  y,
  series.map(({ points }) => points.map(([at, value]) => [x(at), y(value)])),
  across,
)}
${legend(series)}
</svg>
`
}

function legend(series: readonly { readonly name: string }[]): string {
  return series
    .map(
      ({ name }, index) =>
        `<g transform="translate(${LEFT + (index % 2) * (WIDTH / 2 + 10)} ${TOP + HEIGHT + 50 + Math.floor(index / 2) * 18})"><rect width="14" height="4" y="-6" fill="${COLOURS[index] ?? '#000'}"/><text x="20">${name}</text></g>`,
    )
    .join('\n')
}

function chart(
  left: number,
  title: string,
  columns: readonly number[],
  x: (value: number) => number,
  rows: readonly number[],
  y: (value: number) => number,
  lines: readonly (readonly (readonly number[])[])[],
  across = 'offered messages/s',
): string {
  const at = (value: number): string => value.toFixed(1)
  return `<g transform="translate(${left} ${TOP})">
<text y="-14" font-weight="bold">${title}</text>
${rows.map((value) => `<path d="M0 ${at(y(value))}h${WIDTH}" stroke="#ddd"/><text x="-8" y="${at(y(value) + 4)}" text-anchor="end">${value}</text>`).join('\n')}
${columns.map((value) => `<text x="${at(x(value))}" y="${HEIGHT + 16}" text-anchor="middle">${value}</text>`).join('\n')}
<text x="${WIDTH / 2}" y="${HEIGHT + 32}" text-anchor="middle">${across}</text>
<path d="M0 0v${HEIGHT}h${WIDTH}" fill="none" stroke="#444"/>
${lines.map((points, index) => `<polyline fill="none" stroke="${COLOURS[index] ?? '#000'}" stroke-width="2" points="${points.map((pair) => pair.map(at).join(',')).join(' ')}"/>`).join('\n')}
</g>`
}
