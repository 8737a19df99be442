package plan

import (
	"time"

	"example.com/keyring/internal/meta"
)

// Leftover is what one server still has on its disk of a key that is or was removed.
type Leftover struct {
	ID    meta.KeyID
	File  bool // there is, or may be, a file under the key's name
	Aside bool // there are files that were set aside
}

// Cleanup says what is to be done with the leftovers.
type Cleanup struct {
	SetAside []meta.KeyID // keys whose files are set aside now
	Unlink   []meta.KeyID // keys whose files can be unlinked, once the leader confirms that they are removed for good
	Next     time.Time    // when there is more to do, if nothing changes; zero for never
}

// CleanUp says what is done with the files of removed keys. It names only keys that have a tombstone: the other keys are in
// the ring, or are orphans, which are kept. Until the server has caught up it names none, because the removal may have
// been undone.
func CleanUp(r *meta.Ring, caughtUp bool, leftovers []Leftover, undo time.Duration, s RingClock) Cleanup {
	var b Cleanup
	if !caughtUp {
		return b
	}
	for _, g := range leftovers {
		t, removed := r.Tombstone(g.ID)
		if !removed {
			continue
		}
		if g.File {
			b.SetAside = append(b.SetAside, g.ID)
		}
		at := s.UnlinkAt(t, undo)
		switch {
		case !g.Aside:
		case !at.After(s.Now):
			b.Unlink = append(b.Unlink, g.ID)
		case b.Next.IsZero() || at.Before(b.Next):
			b.Next = at
		}
	}
	return b
}

// UnlinkAt is when the files of a removed key may be unlinked. Until then the removal can be undone by restoring a snapshot
// from before it.
func (s RingClock) UnlinkAt(t meta.Tombstone, undo time.Duration) time.Time {
	if t.Now {
		return time.Time{}
	}
	return s.seen(t.Removed).Add(max(0, undo))
}
