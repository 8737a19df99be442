package plan

import (
	"time"

	"example.com/keyring/internal/meta"
)

// Hello is what came of the leader's greeting of one server, before the first key.
type Hello struct {
	Build   int           // which version of log entries it applies; zero if it has not said
	There   bool          // it has not said, and is up: it opens its keystore, say
	Waiting int           // key files there that the ring does not know, and that it has not opened
	Silent  time.Duration // for how long there has been no sign of it
}

// Hindrance is why the first key waits for a server.
type Hindrance string

// The hindrances.
const (
	NoAnswer  Hindrance = "no answer"  // nobody knows what it applies, and which keys it has
	NotOpen   Hindrance = "not open"   // it is yet to read its keystore
	FilesWait Hindrance = "files wait" // it has key files that it can't open yet
)

// downPatience is how long a server that is down is waited for, for the keys it may have, where every
// server is known to be of this build.
const downPatience = 10 * time.Second

// FirstKeyWaits returns the servers that the first key waits for. A key that is made while one of them has
// key files makes those orphans, and what is sealed under them can't be opened. So a server that is up is
// waited for as long as it takes. One that is down is too, for its build may have no keyring at all; where
// all are of this build, only for a while.
func FirstKeyWaits(servers []string, hellos map[string]Hello, sameBuild bool) map[string]Hindrance {
	waits := map[string]Hindrance{}
	for _, s := range servers {
		switch h := hellos[s]; {
		case h.Waiting > 0:
			waits[s] = FilesWait
		case h.Build > 0: // version 1 has all that founding takes
		case h.There:
			waits[s] = NotOpen
		case !sameBuild || h.Silent <= downPatience:
			waits[s] = NoAnswer
		}
	}
	return waits
}

// BeforeFirstKey reports whether the cluster has yet to make its first key. It may have adopted some.
func BeforeFirstKey(r *meta.Ring) bool { return r.Active() == nil && len(r.Prepublished()) == 0 }
