// What newcomers meet first.
import '../dev-command.test.ts'
import '../inbox-page.test.ts'
import '../readme.test.ts'
