package keyring_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"

	"example.com/keyring/internal/keyringtest"
)

// text is what a record holds after its nth write: 100 bytes.
func text(record, n int) []byte {
	return fmt.Appendf(nil, "%-100s", fmt.Sprintf("record %d write %d", record, n))
}

// fill stores all records, under the first key.
func (c *shelves) fill() {
	c.TB.Helper()
	for i := 0; i < len(c.refs); i += 1000 {
		err := c.led(func(s *shelfServer) error {
			var puts []keyringtest.RecordPut
			for j := i; j < min(i+1000, len(c.refs)); j++ {
				sealed, err := s.node.Keyring().Encrypt(text(j, 0), []byte(c.refs[j]))
				if err != nil {
					return err
				}
				puts = append(puts, keyringtest.RecordPut{Ref: c.refs[j], New: sealed})
			}
			errs, err := s.put(c.ctx, puts...)
			return errors.Join(append(errs, err)...)
		})
		if err != nil {
			c.TB.Fatal(err)
		}
	}
	for _, s := range c.servers() {
		c.catchUp(s, c.leader())
	}
}

func (c *shelves) seal(ref string) (sealed []byte) {
	c.TB.Helper()
	err := c.led(func(s *shelfServer) (err error) {
		sealed, err = s.node.Keyring().Encrypt([]byte(ref), []byte(ref))
		return err
	})
	if err != nil {
		c.TB.Fatal(err)
	}
	return sealed
}

// store stores a record as it is.
func (c *shelves) store(p keyringtest.RecordPut) error {
	return c.led(func(s *shelfServer) error {
		errs, err := s.put(c.ctx, p)
		return errors.Join(append(errs, err)...)
	})
}

// write overwrites records at random, and those it is told to. Each writer has every other record.
func (c *shelves) write(writer int, stop <-chan struct{}) {
	random := rand.New(rand.NewPCG(uint64(writer), 0))
	for {
		o := order{record: 2*random.IntN(len(c.refs)/2) + writer}
		select {
		case <-stop:
			return
		case <-c.ctx.Done():
			return
		case o = <-c.orders[writer]:
		default:
		}
		ref, n := []byte(c.refs[o.record]), c.told[o.record]+1
		err := c.led(func(s *shelfServer) error {
			store := func(ctx context.Context, sealed []byte) error {
				errs, err := s.put(ctx, keyringtest.RecordPut{Ref: string(ref), New: sealed})
				return errors.Join(append(errs, err)...)
			}
			return s.node.Keyring().EncryptTo(c.ctx, text(o.record, n), ref, store)
		})
		if err != nil {
			if c.ctx.Err() == nil {
				c.TB.Errorf("write %s: %v", ref, err)
			}
			return
		}
		c.told[o.record] = n
		c.writes.Add(1)
		if o.done != nil {
			close(o.done)
		}
	}
}

// overtake has the writer of a record write it, and waits.
func (c *shelves) overtake(ctx context.Context, ref string) error {
	record, _ := slices.BinarySearch(c.refs, ref)
	o := order{record, make(chan struct{})}
	select {
	case c.orders[record%2] <- o:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	select {
	case <-o.done:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// read opens records at random on servers at random, again and again: a few each time a server has
// applied something or sees who leads.
func (c *shelves) read(stop <-chan struct{}) {
	random := rand.New(rand.NewPCG(2, 0))
	for {
		s, left := c.pick(random)
		_, applied := s.shelf.look()
		wait := []<-chan struct{}{applied, s.node.Keyring().Changed(), left, stop}
		ok := c.readSome(s, random)
		s.readers.Done()
		if !ok || c.any(wait) != nil || isClosed(stop) {
			return
		}
	}
}

func (c *shelves) readSome(s *shelfServer, random *rand.Rand) bool {
	for range 100 {
		record := random.IntN(len(c.refs))
		ref := c.refs[record]
		got, err := s.node.Decrypt(c.ctx, s.shelf.get(ref), []byte(ref))
		if want := fmt.Sprintf("record %d write ", record); err != nil || !strings.HasPrefix(string(got), want) {
			c.TB.Errorf("read %s on %s: %q, %v", ref, s.id, got, err)
			return false
		}
		c.reads.Add(1)
	}
	return true
}

func isClosed(ch <-chan struct{}) bool {
	select {
	case <-ch:
		return true
	default:
		return false
	}
}

// pick returns a server that is not closed before its readers are done, and a channel that is closed
// when that, or another, is about to be.
func (c *shelves) pick(random *rand.Rand) (*shelfServer, <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var level []*shelfServer
	for _, id := range slices.Sorted(maps.Keys(c.up)) {
		if c.up[id].level {
			level = append(level, c.up[id])
		}
	}
	s := level[random.IntN(len(level))]
	s.readers.Add(1)
	return s, c.changed
}
