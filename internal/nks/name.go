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

// idSize is the length of a key ID as text.
const idSize = 36

func formatID(id ID) string {
	b := make([]byte, 0, idSize)
	b = append(hex.AppendEncode(b, id[:4]), '-')
	b = append(hex.AppendEncode(b, id[4:6]), '-')
	b = append(hex.AppendEncode(b, id[6:8]), '-')
	b = append(hex.AppendEncode(b, id[8:10]), '-')
	return string(hex.AppendEncode(b, id[10:]))
}

// parseID accepts what formatID returns and nothing else.
func parseID(text string) (id ID, ok bool) {
	if len(text) != idSize {
		return ID{}, false
	}
	digits := text[:8] + text[9:13] + text[14:18] + text[19:23] + text[24:]
	if _, err := hex.Decode(id[:], []byte(digits)); err != nil || formatID(id) != text {
		return ID{}, false
	}
	return id, true
}
