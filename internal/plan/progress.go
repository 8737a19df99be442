package plan

import "time"

// Progress is how far another server is in raft's log, as the leader knows it. The zero value knows nothing.
type Progress struct {
	Applied uint64    // the index that it had applied at its last answer
	Since   time.Time // when it first gave that answer
	Behind  uint64    // how many entries the leader had committed and the server had not applied then
	Stuck   bool      // it applied nothing between two answers, though there was something to apply

	committed uint64 // by the leader at the last answer
}

// Heard returns the progress after an answer: applied by the server, and committed by the leader, now. The time between
// two answers has to be enough to apply what was committed at the first.
func (p Progress) Heard(applied, committed uint64, now time.Time) Progress {
	next := Progress{Applied: applied, Since: now, committed: committed}
	if committed > applied {
		next.Behind = committed - applied
	}
	if !p.Since.IsZero() && applied == p.Applied {
		next.Since = p.Since
		next.Stuck = applied < p.committed
	}
	return next
}
