// What callers send and are answered.
import '../attacks-http.test.ts'
import '../messages.test.ts'
import '../openapi.test.ts'
import '../paths.test.ts'
import '../problems.test.ts'
import '../validation.test.ts'
