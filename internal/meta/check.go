package meta

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

// MaxPublic is the largest public key in bytes that the ring takes.
const MaxPublic = 4096

// MaxSuite is the longest name of a cipher suite in bytes.
const MaxSuite = 32

// MaxActor is the longest name of an actor, who asked for a command, in bytes.
const MaxActor = 255

// MaxServerID is the longest server ID in bytes that the ring takes.
const MaxServerID = 255

// validate says what is wrong with a command in any ring.
func (c Command) validate() error {
	set := 0
	var err error
	check := func(present bool, e func() error) {
		if present {
			set++
			err = e()
		}
	}
	check(c.Init != nil, func() error { return nonzero("cluster ID", c.Init.Cluster) })
	check(c.Add != nil, func() error { return c.Add.validate() })
	check(c.Hold != nil, func() error { return c.Hold.validate() })
	check(c.Forget != nil, func() error { return serverIDs(c.Forget.Servers) })
	check(c.Activate != nil, func() error { return c.Activate.validate() })
	check(c.Rekey != nil, func() error { return nonzero("key ID", c.Rekey.ID) })
	check(c.Clean != nil, func() error { return nonzero("key ID", c.Clean.ID) })
	check(c.Deprecate != nil, func() error {
		return errors.Join(nonzero("key ID", c.Deprecate.ID), nonzero("index of a clean scan", c.Deprecate.Clean))
	})
	check(c.Remove != nil, func() error { return errors.Join(nonzero("key ID", c.Remove.ID), instant(c.Remove.Time)) })
	check(c.Adopt != nil, func() error { return c.Adopt.validate() })
	check(c.Backup != nil, func() error { return c.Backup.validate() })
	check(c.AddJoinToken != nil, func() error { return c.AddJoinToken.Token.validate() })
	check(c.UseJoinToken != nil, func() error { return c.UseJoinToken.validate() })
	check(c.EndJoinTokens != nil, func() error { return c.EndJoinTokens.validate() })
	check(c.Nonvoter != nil, func() error { return serverIDs([]string{c.Nonvoter.Server}) })
	if set != 1 {
		return fmt.Errorf("%d commands in place of one", set)
	}
	return err
}

func (n NewKey) validate() error {
	if len(n.Public) == 0 || len(n.Public) > MaxPublic {
		return fmt.Errorf("public key of %d bytes", len(n.Public))
	}
	if len(n.Algorithm) == 0 || len(n.Algorithm) > 16 {
		return fmt.Errorf("algorithm name of %d bytes", len(n.Algorithm))
	}
	if len(n.Suite) > MaxSuite || strings.ContainsFunc(n.Suite, func(c rune) bool { return c <= ' ' || c > '~' }) {
		return fmt.Errorf("name of a cipher suite of %d bytes, want at most %d printable ones", len(n.Suite), MaxSuite)
	}
	return errors.Join(nonzero("key ID", n.ID), nonzero("check value", n.Check), instant(n.Created))
}

func (c *Add) validate() error {
	if !utc(c.Publish) {
		return errors.New("publish time not in UTC")
	}
	if slices.Contains(c.Revoke, c.Key.ID) {
		return errors.New("a key that revokes itself")
	}
	if c.Compromised && (!c.Full || len(c.Revoke) > 0) {
		return errors.New("after a compromise all data moves, and all keys are revoked")
	}
	return c.Key.validate()
}

func (c *Hold) validate() error {
	return errors.Join(serverIDs([]string{c.Server}), nonzero("keystore ID", c.Keystore))
}

func (c *Activate) validate() error {
	var confirmed []string
	for _, s := range c.Confirmed {
		confirmed = append(confirmed, s.ID)
	}
	return errors.Join(serverIDs(c.Voters), serverIDs(confirmed), nonzero("key ID", c.ID), instant(c.Time))
}

func (c *Adopt) validate() error {
	if c.Admit && c.DataOnly {
		return errors.New("tokens are admitted of a key that is for data only")
	}
	return errors.Join(c.Key.validate(), instant(c.Time))
}

func (b Backup) validate() error {
	return errors.Join(nonzero("log index", b.Index), nonzero("digest", b.Digest), instant(b.Time))
}

func serverIDs(ids []string) error {
	seen := map[string]bool{}
	for _, id := range ids {
		if id == "" || len(id) > MaxServerID || !utf8.ValidString(id) || seen[id] {
			return errors.New("server IDs that are empty, too long, not UTF-8 or named twice")
		}
		seen[id] = true
	}
	if len(ids) == 0 {
		return errors.New("no server ID")
	}
	return nil
}

func nonzero[T comparable](what string, v T) error {
	var zero T
	if v == zero {
		return fmt.Errorf("zero %s", what)
	}
	return nil
}

func instant(t time.Time) error {
	if t.IsZero() || !utc(t) {
		return errors.New("a time that is zero or not in UTC")
	}
	return nil
}

// Check says what is wrong with a ring that no log could have led to, or nil. It costs one
// pass over the keys.
func (r *Ring) Check() error {
	if r.Cluster == (ClusterID{}) && (len(r.Keys)+len(r.Removed)+len(r.Servers)+len(r.Nonvoters) > 0 || r.Backup != (Backup{})) {
		return errors.New("ring without a cluster ID")
	}
	if err := r.checkOrder(); err != nil {
		return err
	}
	active := 0
	for _, k := range r.Keys {
		if err := r.checkKey(k); err != nil {
			return fmt.Errorf("key %s: %w", k.ID, err)
		}
		if k.State == StateActive {
			active++
		}
	}
	if active > 1 {
		return fmt.Errorf("%d active keys", active)
	}
	if err := errors.Join(r.checkJoinTokens(), r.checkNonvoters()); err != nil {
		return err
	}
	if r.Backup != (Backup{}) {
		return r.Backup.validate()
	}
	return nil
}

// checkOrder requires each list to be sorted without repetition. A key must not be nil.
func (r *Ring) checkOrder() error {
	for i, k := range r.Keys {
		if k == nil || (i > 0 && compareIDs(r.Keys[i-1].ID, k.ID) >= 0) {
			return errors.New("keys out of order")
		}
	}
	for i, t := range r.Removed {
		if i > 0 && compareIDs(r.Removed[i-1].ID, t.ID) >= 0 {
			return errors.New("tombstones out of order")
		}
		if err := errors.Join(nonzero("key ID", t.ID), instant(t.Removed)); err != nil {
			return err
		}
	}
	for i, s := range r.Servers {
		if i > 0 && r.Servers[i-1].ID >= s.ID {
			return errors.New("servers out of order")
		}
		if err := errors.Join(serverIDs([]string{s.ID}), nonzero("keystore ID", s.Keystore)); err != nil {
			return err
		}
	}
	return nil
}

// checkKey does not compare indexes: those of a raft that was given the ring's snapshot under a lower index begin again.
func (r *Ring) checkKey(k *Key) error {
	if err := k.New().validate(); err != nil {
		return err
	}
	if k.State.rank() < 0 {
		return fmt.Errorf("unknown state %q", k.State)
	}
	if r.WasRemoved(k.ID) {
		return errors.New("has a tombstone")
	}
	if !utc(k.Publish) || !utc(k.Activated) || !utc(k.Retired) {
		return errors.New("a time not in UTC")
	}
	if k.State == StatePrepublished && !k.Activated.IsZero() || k.State == StateActive && k.Activated.IsZero() {
		return errors.New("activation time does not fit the state")
	}
	if retired := k.State.rank() > StateActive.rank(); retired == k.Retired.IsZero() {
		return errors.New("retirement time does not fit the state")
	}
	if k.State == StateDeprecated && k.Clean == 0 || k.Clean > 0 && k.State.rank() < StateRekeying.rank() {
		return errors.New("clean scan does not fit the state")
	}
	if k.Remove && k.State.rank() < StateRekeying.rank() {
		return errors.New("to be removed, but not rekeying")
	}
	if k.Compromised && (k.State != StatePrepublished || !k.Full || len(k.Revoke) > 0) {
		return errors.New("what follows a compromise does not fit the key")
	}
	if !slices.IsSorted(k.Holders) || len(slices.Compact(slices.Clone(k.Holders))) != len(k.Holders) {
		return errors.New("holders out of order")
	}
	for _, h := range k.Holders {
		if _, ok := r.Keystore(h); !ok {
			return fmt.Errorf("holder %q has no keystore", h)
		}
	}
	return nil
}

// CheckStep says what is wrong if next came right after r, or nil. Together with Check it enforces the ring's part of
// the invariants: no key returns to an earlier state, changes its material, or vanishes without a tombstone, and
// no tombstone vanishes.
func (r *Ring) CheckStep(next *Ring) error {
	if r.Cluster != (ClusterID{}) && r.Cluster != next.Cluster {
		return errors.New("the cluster ID changed")
	}
	if r.Active() != nil && next.Active() == nil {
		return errors.New("the active key went without a successor")
	}
	if next.Backup.Index < r.Backup.Index {
		return errors.New("the last backup became an earlier one")
	}
	for _, t := range r.Removed {
		if !next.WasRemoved(t.ID) {
			return fmt.Errorf("the tombstone of %s vanished", t.ID)
		}
	}
	for _, k := range r.Keys {
		n := next.Key(k.ID)
		switch {
		case n == nil && !next.WasRemoved(k.ID):
			return fmt.Errorf("key %s vanished", k.ID)
		case n == nil:
		case n.State.rank() < k.State.rank():
			return fmt.Errorf("key %s went from %s back to %s", k.ID, k.State, n.State)
		case n.Check != k.Check || n.Algorithm != k.Algorithm || n.Suite != k.Suite || string(n.Public) != string(k.Public):
			return fmt.Errorf("key %s changed what it is made of", k.ID)
		case k.Revoked && !n.Revoked:
			return fmt.Errorf("key %s is no longer revoked", k.ID)
		case k.Remove && !n.Remove:
			return fmt.Errorf("key %s is no longer to be removed", k.ID)
		case k.Compromised && n.State != StatePrepublished:
			if err := r.checkReplaced(next, n); err != nil {
				return err
			}
		}
	}
	return r.checkTokenSteps(next)
}

// checkReplaced requires that after a compromise every key of r but the new active one is revoked and leaving in next.
func (r *Ring) checkReplaced(next *Ring, by *Key) error {
	for _, k := range r.Keys {
		o := next.Key(k.ID)
		if o != nil && k.ID != by.ID && (!o.Revoked || !o.Remove || o.State.rank() < StateRekeying.rank()) {
			return fmt.Errorf("key %s outlives the compromise that %s follows", k.ID, by.ID)
		}
	}
	return nil
}
