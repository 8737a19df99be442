package keystore

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"time"

	"example.com/keyring/internal/kek"
	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/nks"
	"example.com/keyring/internal/parallel"
)

// A KMS may take seconds a call, and there may be thousands of files. So files are opened in turns: the active key's first, then
// the newest, and at the end those that were tried before. What a turn does not get to is Unopened, and waits for the next.

// How long a turn begins to open files, the first ones aside: at the start, which others wait for, and later. A key is held
// when its file's name is synced, which is done after each part of a turn.
const (
	startTurn = 2 * time.Second
	laterTurn = 10 * time.Second
	turnPart  = 2 * time.Second
)

// errUnopened is what is wrong with a key whose file no turn has got to.
var errUnopened = errors.New("its file is here, but is not opened yet")

// readAll reads the files of keys, in parallel, and has them held, until the turn is over. Zero is a turn without an end.
func (s *Store) readAll(ctx context.Context, ring *meta.Ring, ids []meta.KeyID, turn time.Duration) {
	if turn == 0 {
		s.readPart(ctx, ids, 0)
		return
	}
	s.order(ring, ids)
	began := time.Now()
	for {
		ids = s.readPart(ctx, ids, turnPart)
		if len(ids) == 0 || ctx.Err() != nil {
			return
		}
		if time.Since(began) >= turn {
			break
		}
	}
	for _, id := range ids {
		s.noteUnopened(id)
	}
}

// readPart reads the first of the files, and begins none after that time but the very first. It returns the rest.
func (s *Store) readPart(ctx context.Context, ids []meta.KeyID, patience time.Duration) (left []meta.KeyID) {
	began, skipped := time.Now(), make([]bool, len(ids))
	parallel.Do(len(ids), func(i int) {
		skipped[i] = ctx.Err() != nil || patience > 0 && i >= parallel.Most && time.Since(began) >= patience
		if !skipped[i] {
			s.read(ctx, ids[i])
		}
	})
	var read []meta.KeyID
	for i, id := range ids {
		if skipped[i] {
			left = append(left, id)
		} else {
			read = append(read, id)
		}
	}
	s.syncNames(read)
	return left
}

// order puts the keys into the order in which they are opened, and shows their files to the KEKs. Where no KEK waits for an
// answer from elsewhere, the order does not matter.
func (s *Store) order(ring *meta.Ring, ids []meta.KeyID) {
	if !s.keks.MayWait() {
		return
	}
	created := make(map[meta.KeyID]time.Time, len(ids))
	for _, id := range ids {
		if file, err := s.decode(s.fileName(id)); err == nil {
			created[id] = file.Created
			s.keks.Show(file)
		}
	}
	if active := ring.Active(); active != nil {
		created[active.ID] = time.Unix(1<<40, 0) // later than all
	}
	tried := s.tried(ring)
	slices.SortFunc(ids, func(a, b meta.KeyID) int {
		return cmp.Or(cmp.Compare(tried[a], tried[b]), created[b].Compare(created[a]), compareIDs(a, b))
	})
}

// tried has a 1 for each key but the active one of which a turn has tried the file, and it has not opened: those come last,
// so that many of them keep nobody else's file from its turn.
func (s *Store) tried(ring *meta.Ring) map[meta.KeyID]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	tried, active := map[meta.KeyID]int{}, ring.Active()
	for id, f := range s.faults {
		if f.Cause != Unopened && !f.isSkipped() && (active == nil || active.ID != id) {
			tried[id] = 1
		}
	}
	return tried
}

// noteUnopened notes that the file of a key is still to be opened, unless more is known of it.
func (s *Store) noteUnopened(id meta.KeyID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f, known := s.faults[id]; known && !f.isSkipped() || s.keys[id] != nil {
		return
	}
	s.noteFaultLocked(id, Fault{Cause: Unopened, Err: errUnopened})
}

// Unopened is how many files are still to be opened, which Heal goes on with.
func (s *Store) Unopened() (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range s.faults {
		if f.Cause == Unopened {
			n++
		}
	}
	return n
}

// Waiting is how many files wait for a KEK that is down.
func (s *Store) Waiting() (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range s.faults {
		if f.isSkipped() || f.State == kek.Throttled {
			n++
		}
	}
	return n
}

// showSome shows some files to the KEKs before these are probed: an old one may not wrap any more.
func (s *Store) showSome() {
	const most = 256
	names, err := s.dir.List()
	if err != nil {
		return // the scan says so
	}
	shown := 0
	for _, name := range names {
		if _, ok := nks.ParseFileName(name); !ok || shown == most {
			continue
		}
		if file, err := s.decode(name); err == nil {
			s.keks.Show(file)
			shown++
		}
	}
}
