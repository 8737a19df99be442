package histories

import (
	"math/rand/v2"
	"syscall"
)

// fault is something that happens to a host, until it ends.
type fault struct {
	kind  string
	wired bool // it needs networks
	begin func(l *lab, h *host, random *rand.Rand) (end func())
}

const wiping = "wipe"

var faults = []fault{
	{"kill", false, func(l *lab, h *host, _ *rand.Rand) func() {
		h.kill()
		l.examine(h)
		return func() { l.start(h) }
	}},
	{wiping, false, func(l *lab, h *host, _ *rand.Rand) func() { // it comes back by itself: it is a member still
		h.kill()
		l.examine(h)
		l.wipe(h)
		return func() { l.start(h) }
	}},
	{"stop", false, func(l *lab, h *host, _ *rand.Rand) func() {
		h.signal(syscall.SIGSTOP)
		return func() { h.signal(syscall.SIGCONT) }
	}},
	{"cut off", true, func(l *lab, h *host, _ *rand.Rand) func() {
		l.cut(h, "down")
		return func() { l.cut(h, "up") }
	}},
	{"mute", true, func(l *lab, h *host, _ *rand.Rand) func() { // it hears, and nobody hears it
		l.drop(h, from, everyPacket)
		return func() { l.pass(h, from) }
	}},
	{"deaf", true, func(l *lab, h *host, _ *rand.Rand) func() {
		l.drop(h, to, everyPacket)
		return func() { l.pass(h, to) }
	}},
	{"one way", true, func(l *lab, h *host, random *rand.Rand) func() { // to one of the others
		other := l.hosts[random.IntN(len(l.hosts))]
		for other == h {
			other = l.hosts[random.IntN(len(l.hosts))]
		}
		l.drop(h, from, addressed(l.cluster.Servers[other.id].Raft))
		return func() { l.pass(h, from) }
	}},
	{"loss", true, func(l *lab, h *host, _ *rand.Rand) func() {
		l.drop(h, from, each(20))
		l.drop(h, to, each(20))
		return func() { l.pass(h, from, to) }
	}},
	{"move", true, func(l *lab, h *host, _ *rand.Rand) func() { // to another address
		h.kill()
		l.examine(h)
		l.net.give(l, h)
		l.writeCluster() // which the others don't read before they start again
		return func() { l.start(h) }
	}},
}

// possible are the faults that can be made here.
func (l *lab) possible() (all []fault) {
	for _, f := range faults {
		if !f.wired || l.net != nil {
			all = append(all, f)
		}
	}
	return all
}
