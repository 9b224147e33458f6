// Makes the calls of examples with @segment/analytics-node, and prints what became of them.
// Usage: node analytics-node.mjs HOST WRITE_KEY EXAMPLE...

import { Analytics } from '@segment/analytics-node'
import { make } from './examples.mjs'

const [host, writeKey, ...names] = process.argv.slice(2)
const analytics = new Analytics({ host, writeKey })
analytics.on('error', error => console.error(String(error.reason)))
console.log(JSON.stringify(await make(analytics, names)))
await analytics.closeAndFlush()
