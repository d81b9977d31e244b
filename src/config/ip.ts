// The one thing that pure rooms take from node:net: it looks at a text and opens nothing.
export { isIP } from 'node:net'
