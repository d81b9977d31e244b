// What callers send and are answered.
import '../messages.test.ts'
import '../openapi.test.ts'
import '../routes.test.ts'
import '../problems.test.ts'
import '../validation.test.ts'
import '../compose.test.ts'
