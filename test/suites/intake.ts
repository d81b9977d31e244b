// Bodies on their way in.
import '../admission.test.ts'
import '../multipart.test.ts'
import '../raw.test.ts'
