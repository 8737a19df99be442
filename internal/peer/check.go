package peer

import (
	"errors"
	"fmt"
	"time"
	"unicode/utf8"

	"example.com/keyring/internal/meta"
)

// What the fields of a message may hold.
const (
	maxText   = MaxServerID    // bytes of a server ID, of an algorithm, of an actor
	maxAtRisk = 4096           // bytes of LeaveAnswer.AtRisk
	maxPublic = meta.MaxPublic // bytes of a public key; ML-DSA-87 has 2,614
)

// A kind is a pointer to one of the requests or answers.
type kind interface{ check() error }

// given returns p as a kind, and nil for a nil pointer.
func given[T any, P interface {
	*T
	kind
}](p P) kind {
	if p == nil {
		return nil
	}
	return p
}

func (r Request) kind() (kind, error) {
	return onlyOne(given(r.Hello), given(r.Fetch), given(r.Hold), given(r.Ask), given(r.Offer), given(r.Removed), given(r.State), given(r.Leave))
}

func (r Response) kind() (kind, error) {
	return onlyOne(given(r.Hello), given(r.Fetch), given(r.Hold), given(r.Ask), given(r.Refusal), given(r.Removed), given(r.State), given(r.Leave))
}

// onlyOne returns the one kind that is set, checked.
func onlyOne(kinds ...kind) (kind, error) {
	var one kind
	for _, k := range kinds {
		if k != nil && one != nil {
			return nil, errors.New("peer message: of two kinds")
		}
		if k != nil {
			one = k
		}
	}
	if one == nil {
		return nil, errors.New("peer message: of no kind")
	}
	if err := one.check(); err != nil {
		return nil, fmt.Errorf("peer message: %w", err)
	}
	return one, nil
}

func (*HelloRequest) check() error { return nil }
func (*HoldAnswer) check() error   { return nil }
func (*StateRequest) check() error { return nil }

func (r *LeaveRequest) check() error {
	if r.By == "" {
		return nil
	}
	return checkText(r.By)
}

func (a *LeaveAnswer) check() error {
	if len(a.AtRisk) > maxAtRisk || !utf8.ValidString(a.AtRisk) {
		return fmt.Errorf("what is at risk in %d bytes, want at most %d of UTF-8", len(a.AtRisk), maxAtRisk)
	}
	return nil
}

func (a *StateAnswer) check() error {
	if a.Time.Location() != time.UTC {
		return errors.New("time is not in UTC")
	}
	if a.Files < 0 {
		return errors.New("negative version of key files")
	}
	return nil
}

func (r *FetchRequest) check() error {
	if len(r.IDs) == 0 {
		return errors.New("no IDs")
	}
	if len(r.Public) != publicKeySize {
		return fmt.Errorf("public key of %d bytes, want %d", len(r.Public), publicKeySize)
	}
	return checkDistinct(MaxFetch, r.IDs)
}

func (r *HoldRequest) check() error {
	return errors.Join(checkKeystore(r.Keystore), checkDistinct(MaxIDs, r.Gained, r.Lost))
}

func (r *AskRequest) check() error {
	if len(r.IDs) == 0 {
		return errors.New("no IDs")
	}
	return checkDistinct(MaxIDs, r.IDs)
}

func (r *RemovedRequest) check() error {
	if len(r.IDs) == 0 {
		return errors.New("no IDs")
	}
	return checkDistinct(MaxIDs, r.IDs)
}

func (a *RemovedAnswer) check() error { return checkDistinct(MaxIDs, a.IDs) }

func (r *OfferRequest) check() error {
	if r.Created.Location() != time.UTC {
		return errors.New("created is not in UTC")
	}
	return checkText(r.Algorithm)
}

func (a *HelloAnswer) check() error {
	if a.Build < 1 {
		return fmt.Errorf("build %d", a.Build)
	}
	if len(a.Orphans) > MaxOrphans {
		return fmt.Errorf("%d orphans, at most %d", len(a.Orphans), MaxOrphans)
	}
	ids := make([]ID, 0, len(a.Orphans))
	for _, o := range a.Orphans {
		if err := o.check(); err != nil {
			return fmt.Errorf("orphan %s: %w", o.ID, err)
		}
		ids = append(ids, o.ID)
	}
	return errors.Join(checkKeystore(a.Keystore), checkDistinct(MaxOrphans, ids), a.Waiting.check())
}

func (w *Waiting) check() error {
	switch {
	case w == nil:
		return nil
	case w.Files < 1 || w.Of < w.Files:
		return fmt.Errorf("%d of %d key files wait", w.Files, w.Of)
	case len(w.KEKs) > MaxWaiting:
		return fmt.Errorf("%d KEKs, at most %d", len(w.KEKs), MaxWaiting)
	}
	for _, id := range w.KEKs {
		if err := checkText(id); err != nil {
			return fmt.Errorf("KEK: %w", err)
		}
	}
	return nil
}

// check does not parse the public key: a newer build may have one that this build does not know, and the rest of the hello
// counts all the same.
func (o Orphan) check() error {
	if err := checkText(o.Algorithm); err != nil {
		return fmt.Errorf("algorithm: %w", err)
	}
	if o.Created.Location() != time.UTC {
		return errors.New("created is not in UTC")
	}
	if len(o.Public) == 0 || len(o.Public) > maxPublic {
		return fmt.Errorf("public key of %d bytes", len(o.Public))
	}
	return nil
}

func (a *FetchAnswer) check() error {
	if len(a.Enc) != encSize {
		return fmt.Errorf("encapsulated key of %d bytes, want %d", len(a.Enc), encSize)
	}
	ids := make([]ID, 0, len(a.Keys))
	for _, k := range a.Keys {
		if len(k.Sealed) <= tagSize || len(k.Sealed) > MaxMaterial+tagSize {
			return fmt.Errorf("key %s of %d sealed bytes", k.ID, len(k.Sealed))
		}
		ids = append(ids, k.ID)
	}
	return checkDistinct(MaxFetch, ids)
}

func (a *AskAnswer) check() error {
	return errors.Join(checkKeystore(a.Keystore), checkDistinct(MaxIDs, a.Held))
}

func (r *Refusal) check() error {
	switch r.Code {
	case NotReady, NotMember, NotLeader, Unsupported, BadRequest:
	default:
		return fmt.Errorf("unknown error code %.64q", r.Code)
	}
	if r.Leader == "" {
		return nil
	}
	if r.Code != NotLeader {
		return fmt.Errorf("%s names a leader", r.Code)
	}
	return checkText(r.Leader)
}

// checkDistinct refuses more than limit IDs in all, and one that comes twice.
func checkDistinct(limit int, lists ...[]ID) error {
	seen := make(map[ID]bool)
	for _, ids := range lists {
		for _, id := range ids {
			if seen[id] {
				return fmt.Errorf("ID %s comes twice", id)
			}
			seen[id] = true
		}
		if len(seen) > limit {
			return fmt.Errorf("%d IDs, at most %d", len(seen), limit)
		}
	}
	return nil
}

func checkKeystore(keystore ID) error {
	if keystore == (ID{}) {
		return errors.New("no keystore ID")
	}
	return nil
}

// checkText refuses what is no server ID or algorithm name.
func checkText(s string) error {
	if s == "" || len(s) > maxText || !utf8.ValidString(s) {
		return fmt.Errorf("text of %d bytes, want 1 to %d of UTF-8", len(s), maxText)
	}
	return nil
}

// checkLowest refuses a message that does not carry the lowest version that has it.
func checkLowest(carries, needs int) error {
	if carries != needs {
		return fmt.Errorf("peer message: not in the canonical form: it carries version %d and is of version %d", carries, needs)
	}
	return nil
}
