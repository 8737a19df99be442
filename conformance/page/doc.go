// Package page has tests alone: what the page of examples/controlplane shows in a browser, and what
// it does there. They need Chromium and its driver, in Debian the packages chromium and
// chromium-driver, and run the program itself as three processes.
//
//	cd conformance && go test -count=1 ./page
//
// Without -count=1, Go may answer from its cache: it does not know what the program is made of.
// With -page.shots=DIR, an absolute path, TestShots writes what it sees there, as PNGs.
package page
