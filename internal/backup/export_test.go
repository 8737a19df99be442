package backup

// What tests look into.
var (
	Sign           = sign
	IsPlain        = isPlain
	DecodeManifest = decodeManifest
)
