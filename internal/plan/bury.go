package plan

import (
	"time"

	"example.com/keyring/internal/meta"
)

// Grave is what one server still has of a key that is or was removed.
type Grave struct {
	ID    meta.KeyID
	File  bool // a file under the key's name, or there may be
	Aside bool // files set aside
}

// Burial is what is to be done with graves.
type Burial struct {
	SetAside []meta.KeyID // whose files are to be set aside
	Unlink   []meta.KeyID // whose files can go, once that is confirmed
	Next     time.Time    // when there is more to do, if nothing changes; zero for never
}

// Bury says what becomes of the files of removed keys. Only a key that has a tombstone is
// touched: without one it is in the ring, or an orphan, which is kept. Until the server has caught up
// nothing is: the removal may have been undone.
func Bury(r *meta.Ring, caughtUp bool, graves []Grave, undo time.Duration, s Sight) Burial {
	var b Burial
	if !caughtUp {
		return b
	}
	for _, g := range graves {
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

// UnlinkAt is when the files of a removed key may be unlinked: until then the removal can be
// undone by restoring a snapshot from before it.
func (s Sight) UnlinkAt(t meta.Tombstone, undo time.Duration) time.Time {
	if t.Now {
		return time.Time{}
	}
	return s.seen(t.Removed).Add(max(0, undo))
}
