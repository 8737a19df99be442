// Package conformance holds the keyring's tokens against what others have written: Wycheproof's
// vectors, and relying parties that share no code with go-jose. Beside it, page has the control
// plane's page in a browser, histories what its clients see under faults, and attacks an attacker against a
// live cluster. It also gives figures to both import paths of go-metrics. It is a module of its
// own, because nobody else needs what it needs: Node.js 20 or later with npm, Chromium, ip, and
// these Go modules.
//
//	cd conformance && npm ci --prefix jose && go test ./...
package conformance
