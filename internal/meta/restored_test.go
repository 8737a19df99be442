package meta_test

import (
	"reflect"
	"testing"
	"time"

	"example.com/keyring/internal/meta"
)

// TestLastIndexSeesEveryIndex that a ring can have, those of members to come included.
func TestLastIndexSeesEveryIndex(t *testing.T) {
	seen := 0
	for n := 0; ; n++ { // the nth index is set
		r, left := &meta.Ring{}, n
		var set func(v reflect.Value) bool
		set = func(v reflect.Value) bool {
			switch v.Kind() {
			case reflect.Pointer:
				v.Set(reflect.New(v.Type().Elem()))
				return set(v.Elem())
			case reflect.Slice:
				v.Set(reflect.MakeSlice(v.Type(), 1, 1))
				return set(v.Index(0))
			case reflect.Struct:
				for i := range v.NumField() {
					if v.Type().Field(i).IsExported() && set(v.Field(i)) {
						return true
					}
				}
			case reflect.Uint64:
				if left--; left < 0 {
					v.SetUint(7)
					return true
				}
			}
			return false
		}
		if !set(reflect.ValueOf(r).Elem()) {
			break
		}
		if seen++; r.LastIndex() != 7 {
			t.Errorf("%+v has an index of 7, and LastIndex says %d", r, r.LastIndex())
		}
	}
	if seen < 5 { // three of a key, one of a tombstone, the backup's
		t.Errorf("only %d indices are tried", seen)
	}
}

// TestDataOnlyRingOpensDataAlone: whatever state a key is in, it neither seals nor signs any more.
func TestDataOnlyRingOpensDataAlone(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	r := &meta.Ring{
		Cluster: meta.ClusterID{1}, Servers: []meta.Server{{ID: "s1", Keystore: meta.KeystoreID{1}}},
		Removed: []meta.Tombstone{{ID: meta.KeyID{9}, Removed: at, Index: 4}},
		Backup:  meta.Backup{Index: 3, Time: at, Digest: meta.Digest{1}},
		JoinTokens: []meta.JoinToken{{
			ID: meta.TokenID{1}, Server: "s9", End: at, Key: meta.KeyID{2}, Sealed: make([]byte, meta.SealedTokenSize),
		}},
	}
	for i, state := range []meta.State{
		meta.StatePrepublished, meta.StateActive, meta.StateInactive, meta.StateRekeying, meta.StateDeprecated,
	} {
		k := &meta.Key{
			ID: meta.KeyID{byte(i + 1)}, State: state, Algorithm: "EdDSA", Public: []byte{1}, Check: meta.CheckValue{1},
			Created: at, CreateIndex: 5, ModifyIndex: 6, Holders: []string{"s1"}, Full: true,
		}
		if i > 0 {
			k.Activated = at
		}
		if i > 1 {
			k.Retired = at
		}
		if i > 2 {
			k.Clean, k.Remove = 6, true
		}
		r.Keys = append(r.Keys, k)
	}
	if err := r.Check(); err != nil {
		t.Fatal(err)
	}
	before, err := r.Encode()
	if err != nil {
		t.Fatal(err)
	}
	d := r.DataOnly(meta.ClusterID{2}, at.Add(time.Hour))
	if err := d.Check(); err != nil {
		t.Fatal(err)
	}
	if len(r.Restored().JoinTokens) > 0 || len(d.JoinTokens) > 0 || len(r.JoinTokens) == 0 {
		t.Error("a join token goes on")
	}
	if d.Cluster != (meta.ClusterID{2}) || len(d.Keys) != 4 || d.Active() != nil || len(d.Servers) > 0 || d.Backup != (meta.Backup{}) {
		t.Errorf("%+v", d)
	}
	for _, k := range d.Keys {
		if k.State != meta.StateInactive || !k.DataOnly || !k.Adopted() || k.Remove || k.Full || k.HeldBy("s1") || k.ID == r.Keys[0].ID {
			t.Errorf("%+v", k)
		}
	}
	if !d.WasRemoved(meta.KeyID{9}) {
		t.Error("a key that was removed may come back")
	}
	after, err := r.Encode()
	if err != nil || string(after) != string(before) {
		t.Errorf("the ring that it was made of has changed: %v", err)
	}
}
