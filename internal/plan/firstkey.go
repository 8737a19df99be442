package plan

import (
	"time"

	"example.com/keyring/internal/meta"
)

// HelloResult is the outcome of the leader's hello to one server, before the first key.
type HelloResult struct {
	Build   int           // the version of log entries that it applies; zero if it has not answered
	There   bool          // it has not answered, and is up: it may be opening its keystore
	Waiting int           // key files of keys that the ring does not know, and that it has not opened
	Silent  time.Duration // since the last sign of it
}

// WaitReason says why the first key waits for a server.
type WaitReason string

// The reasons to wait.
const (
	NoAnswer  WaitReason = "no answer"  // nobody knows which entries it applies and which keys it has
	NotOpen   WaitReason = "not open"   // it has not read its keystore yet
	FilesWait WaitReason = "files wait" // it has key files that it can't open yet
)

// downPatience is how long the first key waits for a server that is down and may have keys, in a cluster in which every
// server is known to be of this build.
const downPatience = 10 * time.Second

// FirstKeyWaits returns the servers for which the first key waits. If the key were made while one of them has key files,
// these would be orphans, and what is sealed under them could not be opened. So it waits for a server that is up for
// as long as necessary. It also waits for a server that is down, whose build may have no keyring at all; if all
// servers are of this build, only for a while.
func FirstKeyWaits(servers []string, hellos map[string]HelloResult, sameBuild bool) map[string]WaitReason {
	waits := map[string]WaitReason{}
	for _, s := range servers {
		switch h := hellos[s]; {
		case h.Waiting > 0:
			waits[s] = FilesWait
		case h.Build > 0: // version 1 has everything that a bootstrap needs
		case h.There:
			waits[s] = NotOpen
		case !sameBuild || h.Silent <= downPatience:
			waits[s] = NoAnswer
		}
	}
	return waits
}

// BeforeFirstKey reports whether the cluster has not made its first key yet. It may have adopted keys.
func BeforeFirstKey(r *meta.Ring) bool { return r.Active() == nil && len(r.Prepublished()) == 0 }
