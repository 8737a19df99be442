package meta

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"slices"
	"time"
)

// ErrCommandRefused is matched by what Ring.Apply returns for a command that is well formed, and that the present ring
// does not allow.
var ErrCommandRefused = errors.New("keyring command refused")

func refuse(format string, args ...any) error {
	return fmt.Errorf("%w: %w", ErrCommandRefused, fmt.Errorf(format, args...))
}

// Apply returns the ring after the commands of the log entry at index. On an error, which
// matches ErrCommandRefused, none of them has had an effect. r itself never changes.
func (r *Ring) Apply(index uint64, cmds []Command) (*Ring, error) {
	d := draft{at: index, Ring: Ring{
		Cluster: r.Cluster,
		Keys:    slices.Clone(r.Keys),
		Removed: slices.Clone(r.Removed),
		Servers: slices.Clone(r.Servers),
		Backup:  r.Backup,

		JoinTokens: r.JoinTokens, // cloned when it changes
		Nonvoters:  r.Nonvoters,  // the same
	}}
	for _, c := range cmds {
		if err := d.apply(c); err != nil {
			return nil, err
		}
	}
	d.Ring.index()
	return &d.Ring, nil
}

// draft is a ring that is being changed. It owns its slices. The keys in them are shared with the ring before, and
// are replaced and not written to: see edit.
type draft struct {
	Ring
	at uint64 // index of the log entry
}

func (d *draft) apply(c Command) error {
	if c.Init == nil && d.Cluster == (ClusterID{}) {
		return refuse("the cluster has no ID yet")
	}
	switch {
	case c.Init != nil:
		return d.init(c.Init)
	case c.Add != nil:
		return d.add(c.Add)
	case c.Hold != nil:
		return d.hold(c.Hold)
	case c.Forget != nil:
		return d.forget(c.Forget)
	case c.Activate != nil:
		return d.activate(c.Activate)
	case c.Rekey != nil:
		return d.rekey(c.Rekey)
	case c.Clean != nil:
		return d.clean(c.Clean)
	case c.Deprecate != nil:
		return d.deprecate(c.Deprecate)
	case c.Remove != nil:
		return d.remove(c.Remove)
	case c.Adopt != nil:
		return d.adopt(c.Adopt)
	case c.Backup != nil:
		return d.backup(c.Backup)
	case c.AddJoinToken != nil:
		return d.addJoinToken(c.AddJoinToken)
	case c.UseJoinToken != nil:
		return d.useJoinToken(c.UseJoinToken)
	case c.EndJoinTokens != nil:
		d.endJoinTokens(c.EndJoinTokens.ends)
		return nil
	case c.Nonvoter != nil:
		d.nonvoter(c.Nonvoter)
		return nil
	}
	return refuse("unknown command")
}

func (d *draft) init(c *Init) error {
	if d.Cluster != (ClusterID{}) {
		return refuse("the cluster has an ID already")
	}
	d.Cluster = c.Cluster
	return nil
}

func (d *draft) add(c *Add) error {
	if err := d.checkUnused(c.Key.ID); err != nil {
		return err
	}
	for _, id := range c.Revoke {
		if k := d.Key(id); k == nil || k.State == StatePrepublished {
			return refuse("revoke %s: no key that has signed", id)
		}
	}
	k := d.newKey(c.Key, StatePrepublished)
	k.Publish, k.Scheduled, k.Full, k.Revoke = c.Publish, c.Scheduled, c.Full, slices.Clone(c.Revoke)
	k.Compromised = c.Compromised
	d.insert(k)
	return nil
}

func (d *draft) hold(c *Hold) error {
	if ks, ok := d.Keystore(c.Server); !ok || ks != c.Keystore {
		d.forgetServer(c.Server)
		i, _ := slices.BinarySearchFunc(d.Servers, c.Server, func(s Server, id string) int { return cmp.Compare(s.ID, id) })
		d.Servers = slices.Insert(d.Servers, i, Server{c.Server, c.Keystore})
	}
	for _, id := range c.Gained {
		if k := d.Key(id); k != nil && !k.HeldBy(c.Server) {
			d.setHolder(id, c.Server)
		}
	}
	for _, id := range c.Lost {
		if k := d.Key(id); k != nil && k.HeldBy(c.Server) {
			d.dropHolder(id, c.Server)
		}
	}
	return nil
}

func (d *draft) forget(c *Forget) error {
	for _, s := range c.Servers {
		d.forgetServer(s)
	}
	return nil
}

func (d *draft) activate(c *Activate) error {
	k := d.Key(c.ID)
	if k == nil || k.State != StatePrepublished {
		return refuse("activate %s: not prepublished", c.ID)
	}
	if err := d.checkConfirmed(k, c); err != nil {
		return err
	}
	if k.Full {
		for _, other := range d.Prepublished() {
			if other.ID != c.ID {
				d.leaveTombstone(other.ID, c.Time, false)
			}
		}
	}
	for _, old := range slices.Clone(d.Keys) {
		if old.ID != c.ID {
			d.retire(old, k, c.Time)
		}
	}
	for _, id := range k.Revoke {
		if d.Key(id) != nil {
			d.edit(id, func(k *Key) { k.Revoked = true })
		}
	}
	if k.Full || len(k.Revoke) > 0 {
		d.endJoinTokens(allJoinTokens) // a thief may have the keys that they are sealed with
	}
	d.edit(c.ID, func(k *Key) { k.State, k.Activated, k.Compromised = StateActive, c.Time, false })
	return nil
}

// retire changes an old key as the activation of next demands.
func (d *draft) retire(old, next *Key, at time.Time) {
	retired := StateInactive
	if next.Full {
		retired = StateRekeying
	}
	switch {
	case old.State == StateActive:
		d.edit(old.ID, func(k *Key) { k.State, k.Retired = retired, at })
	case old.State == StateInactive && next.Full:
		d.edit(old.ID, func(k *Key) { k.State = StateRekeying })
	}
	if next.Compromised {
		d.edit(old.ID, func(k *Key) { k.Revoked, k.Remove = true, true })
	}
}

// checkConfirmed requires that the answers behind the command are a majority of its voters, each
// from the keystore that is recorded as a holder.
func (d *draft) checkConfirmed(k *Key, c *Activate) error {
	for _, s := range c.Confirmed {
		if !slices.Contains(c.Voters, s.ID) {
			return refuse("activate %s: %q is no voter", c.ID, s.ID)
		}
		if ks, ok := d.Keystore(s.ID); !ok || ks != s.Keystore || !k.HeldBy(s.ID) {
			return refuse("activate %s: %q is no holder with that keystore", c.ID, s.ID)
		}
	}
	if len(c.Confirmed) <= len(c.Voters)/2 {
		return refuse("activate %s: held by %d of %d voters", c.ID, len(c.Confirmed), len(c.Voters))
	}
	return nil
}

func (d *draft) rekey(c *Rekey) error {
	k := d.Key(c.ID)
	if k == nil || k.State != StateInactive && !(k.State == StateRekeying && c.Remove && !k.Remove) {
		return refuse("rekey %s: not inactive", c.ID)
	}
	d.edit(c.ID, func(k *Key) { k.State, k.Remove = StateRekeying, c.Remove })
	d.endJoinTokens(sealedWith(c.ID))
	return nil
}

func (d *draft) clean(c *Clean) error {
	if k := d.Key(c.ID); k == nil || k.State != StateRekeying {
		return refuse("clean %s: not rekeying", c.ID)
	}
	d.edit(c.ID, func(k *Key) { k.Clean = d.at })
	return nil
}

func (d *draft) deprecate(c *Deprecate) error {
	k := d.Key(c.ID)
	if k == nil || k.State != StateRekeying {
		return refuse("deprecate %s: not rekeying", c.ID)
	}
	if k.Clean != c.Clean {
		return refuse("deprecate %s: the scan is not the one that was recorded last", c.ID)
	}
	d.edit(c.ID, func(k *Key) { k.State = StateDeprecated })
	return nil
}

func (d *draft) remove(c *Remove) error {
	k := d.Key(c.ID)
	if k == nil && c.Now && d.endUndo(c.ID) {
		return nil
	}
	if k == nil || k.State != c.From {
		return refuse("remove %s: not %s", c.ID, c.From)
	}
	switch k.State {
	case StatePrepublished, StateDeprecated:
	case StateInactive, StateRekeying:
		if !c.Force {
			return refuse("remove %s: data may be sealed under it", c.ID)
		}
	default:
		return refuse("remove %s: it is %s", c.ID, k.State)
	}
	d.leaveTombstone(c.ID, c.Time, c.Now)
	return nil
}

func (d *draft) adopt(c *Adopt) error {
	if k := d.Key(c.Key.ID); k != nil {
		if !k.DataOnly || c.DataOnly || k.Check != c.Key.Check || k.Suite != c.Key.Suite {
			return refuse("adopt %s: the key is known", c.Key.ID)
		}
		d.edit(k.ID, func(k *Key) {
			k.DataOnly = false
			if c.Admit && !k.Retired.IsZero() && c.Time.After(k.Retired) {
				k.Retired = c.Time
			}
		})
		return nil
	}
	if err := d.checkUnused(c.Key.ID); err != nil {
		return err
	}
	k := d.newKey(c.Key, StateInactive)
	k.Retired, k.DataOnly = c.Time, c.DataOnly
	d.insert(k)
	return nil
}

func (d *draft) backup(c *Backup) error {
	if c.Index >= d.at {
		return refuse("a backup of log index %d, which was yet to come", c.Index)
	}
	if c.Index > d.Backup.Index {
		d.Backup = *c
	}
	return nil
}

// checkUnused refuses a key ID that is in use or was used before.
func (d *draft) checkUnused(id KeyID) error {
	if d.Key(id) != nil || d.WasRemoved(id) {
		return refuse("key ID %s is used", id)
	}
	return nil
}

func (d *draft) newKey(n NewKey, s State) *Key {
	return &Key{
		ID: n.ID, State: s, Algorithm: n.Algorithm, Public: bytes.Clone(n.Public), Check: n.Check,
		Created: n.Created, Suite: n.Suite, CreateIndex: d.at, ModifyIndex: d.at,
	}
}

func (d *draft) insert(k *Key) {
	i, _ := d.search(k.ID)
	d.Keys = slices.Insert(d.Keys, i, k)
}

// edit replaces the key by a changed copy.
func (d *draft) edit(id KeyID, change func(*Key)) {
	i, _ := d.search(id)
	k := *d.Keys[i]
	k.ModifyIndex = d.at
	change(&k)
	d.Keys[i] = &k
}

// leaveTombstone leaves a tombstone in place of the key.
func (d *draft) leaveTombstone(id KeyID, at time.Time, now bool) {
	i, _ := d.search(id)
	d.Keys = slices.Delete(d.Keys, i, i+1)
	d.endJoinTokens(sealedWith(id))
	i, _ = slices.BinarySearchFunc(d.Removed, id, func(t Tombstone, id KeyID) int { return compareIDs(t.ID, id) })
	d.Removed = slices.Insert(d.Removed, i, Tombstone{ID: id, Removed: at, Index: d.at, Now: now})
}

// endUndo ends the time to undo a removal, and reports whether the key was removed.
func (d *draft) endUndo(id KeyID) bool {
	i, ok := slices.BinarySearchFunc(d.Removed, id, func(t Tombstone, id KeyID) int { return compareIDs(t.ID, id) })
	if ok {
		d.Removed[i].Now = true
	}
	return ok
}

func (d *draft) setHolder(id KeyID, server string) {
	d.edit(id, func(k *Key) {
		i, _ := slices.BinarySearch(k.Holders, server)
		k.Holders = slices.Insert(slices.Clone(k.Holders), i, server)
	})
}

func (d *draft) dropHolder(id KeyID, server string) {
	d.edit(id, func(k *Key) {
		k.Holders = slices.DeleteFunc(slices.Clone(k.Holders), func(s string) bool { return s == server })
		if len(k.Holders) == 0 {
			k.Holders = nil // as it reads back from a snapshot
		}
	})
}

func (d *draft) forgetServer(server string) {
	for _, k := range slices.Clone(d.Keys) {
		if k.HeldBy(server) {
			d.dropHolder(k.ID, server)
		}
	}
	d.Servers = slices.DeleteFunc(d.Servers, func(s Server) bool { return s.ID == server })
}
