package plan

import (
	"bytes"
	"slices"
	"time"

	"example.com/keyring/internal/meta"
)

// SameRotation returns the prepublished keys, the newest first, of rotations with the same options: one more such rotation
// can wait for that key, and need not make another.
func SameRotation(r *meta.Ring, add meta.Add, algorithm string, now time.Time) []*meta.Key {
	var same []*meta.Key
	for _, k := range r.Prepublished() {
		if !k.Scheduled && k.Algorithm == algorithm && k.Newer() == "" && sameOptions(k, add, now) {
			same = append(same, k)
		}
	}
	slices.Reverse(same)
	return same
}

// sameOptions reports whether a key is to have the effects of an Add. A publication time that has passed is as none.
func sameOptions(k *meta.Key, add meta.Add, now time.Time) bool {
	at := func(publish time.Time) time.Time {
		if !publish.After(now) {
			return time.Time{}
		}
		return publish
	}
	return at(k.Publish).Equal(at(add.Publish)) && k.Full == add.Full && k.Compromised == add.Compromised &&
		slices.Equal(set(k.Revoke), set(add.Revoke))
}

// set returns the IDs sorted, each once.
func set(ids []meta.KeyID) []meta.KeyID {
	ids = slices.SortedFunc(slices.Values(ids), func(a, b meta.KeyID) int { return bytes.Compare(a[:], b[:]) })
	return slices.Compact(ids)
}
