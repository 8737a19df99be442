package kek_test

import (
	"slices"
	"testing"

	"example.com/keyring/internal/kek"
	"example.com/keyring/internal/kek/kektest"
	"example.com/keyring/internal/nks"
)

// TestPlantedEntryKeepsNoFileShut: a KEK has an ID of its own in files of version 1, and somebody may put an entry of that name
// before or after the one that opens.
func TestPlantedEntryKeepsNoFileShut(t *testing.T) {
	local := kektest.File(t, kektest.CountingKey())
	set := kek.NewSet([]kek.KEK{local}, nil)
	file, m := newKey(t)
	file.Version = 2
	content, _, err := set.Encode(t.Context(), &file, m)
	if err != nil {
		t.Fatal(err)
	}
	nonsense, err := local.Wrap(t.Context(), []byte("nonsense"), decoded(t, content).AAD())
	if err != nil {
		t.Fatal(err)
	}
	for name, planted := range map[string][]byte{"what opens to nothing": make([]byte, 100), "what opens to nonsense": nonsense} {
		for at := range 2 {
			f := decoded(t, content)
			f.Wrapped = slices.Insert(f.Wrapped, at, nks.Wrapped{KEK: "file:74d8b8ddbeaf0f6d", Ciphertext: planted})
			if got, err := set.Decode(t.Context(), f); err != nil || !got.Altered || !got.Rewrap {
				t.Errorf("%s, as entry %d: %+v, %v", name, at, got, err)
			}
		}
	}
}

// TestIDIsAskedForOnce: the keystore asks the set under its lock, and the KEK may be a host's.
func TestIDIsAskedForOnce(t *testing.T) {
	k := &asked{KEK: kektest.Garbler{Name: "kms", Key: 1}}
	set := kek.NewSet([]kek.KEK{k}, nil)
	before := k.times
	set.AreSuperseded(kek.Versions{"kms": "1"})
	set.MayNeedRewrap(encoded(t, kek.Inline()))
	set.Status()
	if before == 0 || k.times != before {
		t.Errorf("%d times, then %d", before, k.times)
	}
}

// asked counts how often it is asked for its ID.
type asked struct {
	kek.KEK
	times int
}

func (k *asked) ID() string {
	k.times++
	return k.KEK.ID()
}
