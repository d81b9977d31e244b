import { closest, distance } from 'fastest-levenshtein'

const LONGEST_WORD = 64 // names here are shorter, and a distance takes the product of two lengths

/** The known word that was most likely meant; undefined where none is near. */
export function nearest(word: string, known: readonly string[]): string | undefined {
  if (known.length === 0 || word.length > LONGEST_WORD) return undefined
  const same = known.find((name) => name.toLowerCase() === word.toLowerCase()) // "CC": each letter is another
  if (same !== undefined) return same
  const turned = known.find((one) => distance(word, one) === 2 && lettersOf(word) === lettersOf(one))
  const best = turned ?? closest(word, known)
  const typos = Math.max(2, Math.floor(best.length / 3)) // two letters that changed places are two
  return distance(word, best) <= Math.min(typos, word.length - 1, best.length - 1) ? best : undefined
}

/** The end of a refusal: ` (did you mean "from"?)`, or nothing. */
export function didYouMean(word: string, known: readonly string[]): string {
  const meant = nearest(word, known)
  return meant === undefined ? '' : ` (did you mean "${meant}"?)`
}

function lettersOf(word: string): string {
  return [...word].sort().join('')
}
