// Makes the calls of examples with analytics-node, the library before @segment/analytics-node, and
// prints what became of them.
// Usage: node analytics-node-6.mjs HOST WRITE_KEY EXAMPLE...

import Analytics from 'analytics-node'
import { make } from './examples.mjs'

const [host, writeKey, ...names] = process.argv.slice(2)
const errorHandler = error => console.error(String(error))
console.log(JSON.stringify(await make(new Analytics(writeKey, { host, errorHandler }), names)))
