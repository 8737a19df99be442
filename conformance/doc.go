// Package conformance holds the keyring's tokens against what others have written: Wycheproof's
// vectors, and relying parties that share no code with go-jose. It is a module of its own, because
// nobody else needs what it needs: Node.js 20 or later with npm, and these Go modules.
//
//	cd conformance && npm ci --prefix jose && go test ./...
package conformance
