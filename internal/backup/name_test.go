package backup_test

import (
	"slices"
	"testing"
	"time"

	"example.com/keyring/internal/backup"
	"example.com/keyring/internal/meta"
	"pgregory.net/rapid"
)

var start = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// TestNamesOfBackupsAreReadStrictly: what has another name was not made by a schedule.
func TestNamesOfBackupsAreReadStrictly(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var cluster meta.ClusterID
		copy(cluster[:], rapid.SliceOfN(rapid.Byte(), len(cluster), len(cluster)).Draw(t, "cluster"))
		at := start.Add(time.Duration(rapid.Int64Range(0, int64(200*365*24*time.Hour)).Draw(t, "at")))
		draw := [4]byte(rapid.SliceOfN(rapid.Byte(), 4, 4).Draw(t, "draw"))
		name := backup.Name(cluster, at, draw)
		if of, when, ok := backup.ParseName(name); !ok || of != cluster || !when.Equal(at.Truncate(time.Second)) {
			t.Fatalf("%s: %v, %v, %t", name, of, when, ok)
		}
		i := rapid.IntRange(0, len(name)-1).Draw(t, "i")
		for _, other := range []string{name[:i], name[:i] + "x" + name[i:], name + ".tmp", "." + name, name[:i] + "-" + name[i+1:]} {
			if _, _, ok := backup.ParseName(other); ok && other != name {
				t.Fatalf("%q is taken for the name of a backup", other)
			}
		}
	})
	for _, name := range []string{"", "keyring", "keyring-00-20260101T000000Z-00000000.age", "keyring---.age", "my backup.age"} {
		if _, _, ok := backup.ParseName(name); ok {
			t.Errorf("%q is taken for the name of a backup", name)
		}
	}
}

// TestSurplus: the oldest go, of this cluster, and never the new one.
func TestSurplus(t *testing.T) {
	now := start.Add(10 * 24 * time.Hour)
	file := func(cluster byte, days int) string {
		return backup.Name(meta.ClusterID{cluster}, start.Add(time.Duration(days)*24*time.Hour), [4]byte{})
	}
	made := file(1, 10)
	others := []string{"README", file(2, 1), "." + file(1, 1) + ".tmp", "copy-of-" + file(1, 1), file(1, 1) + ".old"}
	for _, tt := range []struct {
		name string
		all  []string
		made string
		keep int
		want []string
	}{
		{name: "the first", all: []string{made}, made: made, keep: 3},
		{name: "not listed yet", all: []string{file(1, 9), file(1, 8), file(1, 7)}, made: made, keep: 3, want: []string{file(1, 7)}},
		{name: "in any order", all: []string{file(1, 7), made, file(1, 3), file(1, 9), file(1, 8)}, made: made, keep: 3, want: []string{file(1, 3), file(1, 7)}},
		{name: "the new one alone", all: []string{file(1, 9), made}, made: made, keep: 1, want: []string{file(1, 9)}},
		{name: "by a clock that is behind", all: []string{file(1, 3), file(1, 2), file(1, 4)}, made: file(1, 1), keep: 2, want: []string{file(1, 2), file(1, 3)}},
		{name: "by a clock that was ahead", all: []string{file(1, 400), file(1, 401), file(1, 8), file(1, 9), made}, made: made, keep: 3, want: []string{file(1, 400), file(1, 401)}},
		{name: "nothing by that name", all: []string{file(1, 1)}, made: "x", keep: 1},
		{name: "listed twice", all: []string{file(1, 8), file(1, 8), file(1, 9)}, made: made, keep: 3},
	} {
		all := slices.Concat(tt.all, others)
		if got := backup.Surplus(all, tt.made, tt.keep, now); !slices.Equal(got, tt.want) {
			t.Errorf("%s: %q go, want %q", tt.name, got, tt.want)
		}
	}
}

// TestNoBackupGoesThatIsToBeKept, whatever lies in a store.
func TestNoBackupGoesThatIsToBeKept(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		now := start.Add(50 * 24 * time.Hour)
		drawn := rapid.Custom(func(t *rapid.T) string {
			at := start.Add(time.Duration(rapid.IntRange(0, 60).Draw(t, "day")) * 24 * time.Hour)
			return backup.Name(meta.ClusterID{rapid.Byte().Draw(t, "cluster") % 2}, at, [4]byte{rapid.Byte().Draw(t, "draw") % 3})
		})
		names := rapid.SliceOfDistinct(rapid.OneOf(drawn, rapid.StringN(0, 20, -1)), rapid.ID).Draw(t, "names")
		made, keep := drawn.Draw(t, "made"), rapid.IntRange(1, 9).Draw(t, "keep")
		surplus := backup.Surplus(names, made, keep, now)
		of, _, _ := backup.ParseName(made)
		left := 1 // made
		for _, name := range names {
			cluster, at, is := backup.ParseName(name)
			own := is && cluster == of
			switch gone := slices.Contains(surplus, name); {
			case gone && (!own || name == made):
				t.Fatalf("%q goes", name)
			case !gone && own && name != made:
				left++
			}
			for _, gone := range surplus { // nothing that stays is older
				_, then, _ := backup.ParseName(gone)
				if own && name != made && !slices.Contains(surplus, name) && !then.After(now) && (at.Before(then) || at.After(now)) {
					t.Fatalf("%q stays, and %q goes", name, gone)
				}
			}
		}
		if len(surplus) > 0 && left != keep || left > keep {
			t.Fatalf("%d are left, %d are to be kept: %q", left, keep, surplus)
		}
	})
}
