import t from 'tap'
import { BODY_STAGES, matrix } from '../support/outcome.ts'

for (const pipelining of [false, true]) {
  t.test(
    `every fault at every stage of a 10 MB body has its one outcome, ${pipelining ? 'with' : 'without'} PIPELINING`,
    { buffered: false }, // each has what a busy machine takes in time
    (t) => matrix(t, BODY_STAGES, pipelining, true),
  )
}
