package plan

import "time"

// Progress is how far the leader knows another server to be in raft's log. The zero value is nothing.
type Progress struct {
	Applied uint64    // by its last answer
	Since   time.Time // of the first answer with that
	Behind  uint64    // entries that the leader had committed and the server had not applied then
	Stuck   bool      // between two answers it got no further, though there was something to get

	committed uint64 // by the leader at the last answer
}

// Heard returns the progress after an answer: what the server has applied, and what the leader has
// committed now. Between two answers there has to be time enough for what was committed at the first.
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
