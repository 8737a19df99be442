package records

// Map as a keyring.SealedData: how what is sealed under old keys, or in the clear, is found and replaced.

import (
	"context"
	"crypto/sha256"
	"fmt"
	"iter"
	"strconv"
	"strings"

	"example.com/keyring"
)

// Under implements keyring.SealedData. It yields the parts that are encrypted under a key or, for the zero
// KeyID, those in the clear. The Ref of part 0 is the record's name; the Ref of part 3 is the name and "#3".
// It reads one state, however long the iteration takes.
func (m *Map) Under(ctx context.Context, key keyring.KeyID) iter.Seq2[keyring.Sealed, error] {
	return func(yield func(keyring.Sealed, error) bool) {
		if err := m.unknown(); err != nil { // there may be more
			yield(keyring.Sealed{}, err)
			return
		}
		records := m.under(key)
		if records == nil {
			return
		}
		records.Scan(func(r *Record) bool {
			if ctx.Err() != nil {
				yield(keyring.Sealed{}, context.Cause(ctx))
				return false
			}
			for i, p := range r.Parts {
				if r.KeyID(i) != key {
					continue
				}
				if !yield(keyring.Sealed{Ref: refOf(r.Name, i), Ciphertext: p, AAD: AAD(r.Name, i), Plain: r.isPlain(i)}, nil) {
					return false
				}
			}
			return true
		})
	}
}

// under returns the records that have parts under a key as they are now, or nil for none.
func (m *Map) under(key keyring.KeyID) *tree {
	m.mu.Lock()
	defer m.mu.Unlock()
	g, ok := m.now.byKey[key]
	if !ok {
		return nil
	}
	return g.records.Copy()
}

// Count implements keyring.Counter: it returns the number of parts that are encrypted under a key or, for the
// zero KeyID, are in the clear. It reads an index, and scans nothing.
func (m *Map) Count(_ context.Context, key keyring.KeyID) (int, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.now.byKey[key].parts, m.now.newer
}

// refOf names a part: part 0 as the record, others, and those whose record's name looks like one of these,
// with their number.
func refOf(name string, part int) string {
	if _, _, numbered := cutRef(name); part == 0 && !numbered {
		return name
	}
	return name + "#" + strconv.Itoa(part)
}

func parseRef(ref string) (name string, part int) {
	if name, part, numbered := cutRef(ref); numbered {
		return name, part
	}
	return ref, 0
}

// cutRef cuts the number of a part off, if there is one.
func cutRef(ref string) (name string, part int, numbered bool) {
	at := strings.LastIndexByte(ref, '#')
	if at < 0 {
		return "", 0, false
	}
	part, err := strconv.Atoi(ref[at+1:])
	return ref[:at], part, err == nil && part >= 0 && part < MaxParts
}

// Replace implements keyring.SealedData: it proposes the replacements as one entry of raft's log, and Apply
// replaces each part that is still the old one. It waits for Connect. A part whose entry would be longer than
// keyring.MaxCommand is keyring.ErrTooLong. Only a part from before the keyring can be that long; the host
// has to delete it.
func (m *Map) Replace(ctx context.Context, batch []keyring.Replacement) (conflicts int, err error) {
	l, err := m.awaitLink(ctx)
	if err != nil || len(batch) == 0 {
		return 0, err
	}
	swaps := make([]swap, len(batch))
	for i, r := range batch {
		name, part := parseRef(r.Ref)
		swaps[i] = swap{name, part, sha256.Sum256(r.Ciphertext), r.New}
	}
	conflicts, err = apply[int](ctx, l, encodeSwaps(swaps))
	if err != nil && len(batch) == 1 { // it may be because of this one
		err = fmt.Errorf("%q: %w", batch[0].Ref, err)
	}
	return conflicts, err
}
