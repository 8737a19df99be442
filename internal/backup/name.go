package backup

// How the files of backups by schedule are named, and which of them go.

import (
	"cmp"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"time"

	"example.com/keyring/internal/meta"
)

// nameTime is how the time stands in the name of a backup, in UTC.
const nameTime = "20060102T150405Z"

// Name is the name of a backup by schedule: keyring-<cluster>-<time>-<draw>.age. The draw is random: two servers that
// each take themselves for the leader do not write the same file.
func Name(cluster meta.ClusterID, at time.Time, draw [4]byte) string {
	return fmt.Sprintf("keyring-%x-%s-%x.age", cluster[:], at.UTC().Format(nameTime), draw)
}

// ParseName reports whether Name gives this name, and of what.
func ParseName(name string) (cluster meta.ClusterID, at time.Time, ok bool) {
	parts := strings.Split(strings.TrimSuffix(name, ".age"), "-")
	if len(parts) != 4 || cluster.UnmarshalText([]byte(parts[1])) != nil {
		return meta.ClusterID{}, time.Time{}, false
	}
	at, err := time.Parse(nameTime, parts[2])
	draw, drawn := hex.DecodeString(parts[3])
	if err != nil || drawn != nil || len(draw) != 4 || Name(cluster, at, [4]byte(draw)) != name {
		return meta.ClusterID{}, time.Time{}, false
	}
	return cluster, at, true
}

// Surplus returns which of these files are to be removed, the oldest first, once made is confirmed: all backups of
// the cluster by schedule but made and the newest of the others, keep in all. Files with other names are nobody's to
// remove. A time that lies ahead was written by a clock that was wrong: such a file is older than all others.
func Surplus(names []string, made string, keep int, now time.Time) []string {
	of, _, ok := ParseName(made)
	if !ok || keep < 1 {
		return nil
	}
	type file struct {
		name  string
		ahead bool
		at    time.Time
	}
	var files []file
	for _, name := range names {
		if cluster, at, is := ParseName(name); is && cluster == of && name != made {
			files = append(files, file{name, at.After(now), at})
		}
	}
	slices.SortFunc(files, func(a, b file) int {
		if a.ahead != b.ahead {
			return map[bool]int{true: -1, false: 1}[a.ahead]
		}
		return cmp.Or(a.at.Compare(b.at), strings.Compare(a.name, b.name))
	})
	files = slices.CompactFunc(files, func(a, b file) bool { return a.name == b.name })
	var surplus []string
	for _, f := range files[:max(0, len(files)-(keep-1))] {
		surplus = append(surplus, f.name)
	}
	return surplus
}
