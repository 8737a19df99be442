package nks

import (
	"encoding/hex"
	"strings"
)

const (
	suffix       = ".nks.json"
	besideSuffix = ".keyring.json"
)

// FileName returns the name of the file of a key: its ID as text and ".nks.json".
func FileName(id [16]byte) string { return formatID(id) + suffix }

// BesideName returns the name of the file of a key where a file of Nomad's has FileName.
func BesideName(id [16]byte) string { return formatID(id) + besideSuffix }

// ParseFileName is the reverse of FileName and of BesideName. Any other spelling is not ok.
func ParseFileName(name string) (id [16]byte, ok bool) {
	text, ok := strings.CutSuffix(name, suffix)
	if !ok {
		text, ok = strings.CutSuffix(name, besideSuffix)
	}
	if !ok {
		return id, false
	}
	return parseID(text)
}

func formatID(id ID) string {
	h := hex.EncodeToString(id[:])
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}

// parseID accepts what formatID returns and nothing else.
func parseID(text string) (ID, bool) {
	b, err := hex.DecodeString(strings.ReplaceAll(text, "-", ""))
	if err != nil || len(b) != len(ID{}) || formatID(ID(b)) != text {
		return ID{}, false
	}
	return ID(b), true
}
