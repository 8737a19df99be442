// Package histories has tests alone: three processes of examples/controlplane under load, while the
// leader and others are killed, stopped and cut off. What clients saw is checked with porcupine to be
// linearizable: the secrets at each path, and which key is active.
//
//	cd conformance && go test -count=1 ./histories
//
// Servers are cut off by taking down the link of their network namespace, for which it needs root and
// ip (Debian's iproute2). Without them, and without CI in the environment, only the other faults
// are made. A campaign of ten minutes, with another seed each time unless one is given:
//
//	go test -count=1 -timeout 1h -v ./histories -histories.time 10m [-histories.seed N]
package histories
