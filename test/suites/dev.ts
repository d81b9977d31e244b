// What newcomers meet first.
import '../cli-dev.test.ts'
import '../cli-inbox.test.ts'
import '../docs.test.ts'
