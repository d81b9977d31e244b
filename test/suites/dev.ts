// What newcomers meet first.
import '../inbox-page.test.ts'
import '../readme.test.ts'
