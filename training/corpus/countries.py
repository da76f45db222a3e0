"""Countries, their capitals and continents, typed in by hand. One seat of government each, where there are several."""

from __future__ import annotations

from dataclasses import dataclass

_BY_CONTINENT = {
    "Europe": """Albania:Tirana, Andorra:Andorra la Vella, Austria:Vienna, Belarus:Minsk, Belgium:Brussels,
        Bosnia and Herzegovina:Sarajevo, Bulgaria:Sofia, Croatia:Zagreb, Cyprus:Nicosia, the Czech Republic:Prague,
        Denmark:Copenhagen, Estonia:Tallinn, Finland:Helsinki, France:Paris, Germany:Berlin, Greece:Athens,
        Hungary:Budapest,
        Iceland:Reykjavik, Ireland:Dublin, Italy:Rome, Kosovo:Pristina, Latvia:Riga, Liechtenstein:Vaduz,
        Lithuania:Vilnius,
        Luxembourg:Luxembourg, Malta:Valletta, Moldova:Chisinau, Monaco:Monaco, Montenegro:Podgorica,
        the Netherlands:Amsterdam,
        North Macedonia:Skopje, Norway:Oslo, Poland:Warsaw, Portugal:Lisbon, Romania:Bucharest, Russia:Moscow,
        San Marino:San Marino, Serbia:Belgrade, Slovakia:Bratislava, Slovenia:Ljubljana, Spain:Madrid, Sweden:Stockholm,
        Switzerland:Bern, Ukraine:Kyiv, the United Kingdom:London""",
    "Asia": """Afghanistan:Kabul, Armenia:Yerevan, Azerbaijan:Baku, Bahrain:Manama, Bangladesh:Dhaka, Bhutan:Thimphu,
        Brunei:Bandar Seri Begawan, Cambodia:Phnom Penh, China:Beijing, Georgia:Tbilisi, India:New Delhi,
        Indonesia:Jakarta,
        Iran:Tehran, Iraq:Baghdad, Japan:Tokyo, Jordan:Amman, Kazakhstan:Astana, Kuwait:Kuwait City, Kyrgyzstan:Bishkek,
        Laos:Vientiane, Lebanon:Beirut, Malaysia:Kuala Lumpur, the Maldives:Male, Mongolia:Ulaanbaatar,
        Myanmar:Naypyidaw,
        Nepal:Kathmandu, North Korea:Pyongyang, Oman:Muscat, Pakistan:Islamabad, the Philippines:Manila, Qatar:Doha,
        Saudi Arabia:Riyadh, Singapore:Singapore, South Korea:Seoul, Sri Lanka:Colombo, Syria:Damascus, Taiwan:Taipei,
        Tajikistan:Dushanbe, Thailand:Bangkok, East Timor:Dili, Turkey:Ankara, Turkmenistan:Ashgabat,
        the United Arab Emirates:Abu Dhabi, Uzbekistan:Tashkent, Vietnam:Hanoi, Yemen:Sanaa""",
    "Africa": """Algeria:Algiers, Angola:Luanda, Benin:Porto-Novo, Botswana:Gaborone, Burkina Faso:Ouagadougou,
        Burundi:Gitega,
        Cameroon:Yaounde, Cape Verde:Praia, Chad:N'Djamena, the Comoros:Moroni, Djibouti:Djibouti, Egypt:Cairo,
        Equatorial Guinea:Malabo, Eritrea:Asmara, Eswatini:Mbabane, Ethiopia:Addis Ababa, Gabon:Libreville,
        the Gambia:Banjul,
        Ghana:Accra, Guinea:Conakry, Guinea-Bissau:Bissau, Ivory Coast:Yamoussoukro, Kenya:Nairobi, Lesotho:Maseru,
        Liberia:Monrovia, Libya:Tripoli, Madagascar:Antananarivo, Malawi:Lilongwe, Mali:Bamako, Mauritania:Nouakchott,
        Mauritius:Port Louis, Morocco:Rabat, Mozambique:Maputo, Namibia:Windhoek, Niger:Niamey, Nigeria:Abuja,
        Rwanda:Kigali,
        Senegal:Dakar, the Seychelles:Victoria, Sierra Leone:Freetown, Somalia:Mogadishu, South Africa:Pretoria,
        South Sudan:Juba, Sudan:Khartoum, Tanzania:Dodoma, Togo:Lome, Tunisia:Tunis, Uganda:Kampala, Zambia:Lusaka,
        Zimbabwe:Harare, the Central African Republic:Bangui, the Republic of the Congo:Brazzaville,
        the Democratic Republic of the Congo:Kinshasa""",
    "North America": """Antigua and Barbuda:Saint John's, the Bahamas:Nassau, Barbados:Bridgetown, Belize:Belmopan,
        Canada:Ottawa,
        Costa Rica:San Jose, Cuba:Havana, Dominica:Roseau, the Dominican Republic:Santo Domingo,
        El Salvador:San Salvador,
        Grenada:Saint George's, Guatemala:Guatemala City, Haiti:Port-au-Prince, Honduras:Tegucigalpa, Jamaica:Kingston,
        Mexico:Mexico City, Nicaragua:Managua, Panama:Panama City, Saint Lucia:Castries,
        Trinidad and Tobago:Port of Spain,
        the United States:Washington""",
    "South America": """Argentina:Buenos Aires, Bolivia:Sucre, Brazil:Brasilia, Chile:Santiago, Colombia:Bogota,
        Ecuador:Quito,
        Guyana:Georgetown, Paraguay:Asuncion, Peru:Lima, Suriname:Paramaribo, Uruguay:Montevideo, Venezuela:Caracas""",
    "Oceania": """Australia:Canberra, Fiji:Suva, Kiribati:Tarawa, Micronesia:Palikir, Nauru:Yaren,
        New Zealand:Wellington,
        Palau:Ngerulmud, Papua New Guinea:Port Moresby, Samoa:Apia, the Solomon Islands:Honiara, Tonga:Nuku'alofa,
        Tuvalu:Funafuti, Vanuatu:Port Vila, the Marshall Islands:Majuro""",
}
NOT_CAPITALS = tuple(
    """New York, Sydney, Istanbul, Rio de Janeiro, Mumbai, Barcelona, Munich, Hamburg, Milan, Toronto, Shanghai,
        Chicago,
    Los Angeles, Geneva, Zurich, Lyon, Manchester, Osaka, Karachi, Lagos, Casablanca, Auckland, Melbourne, Vancouver,
    Antwerp, Porto, Naples, Krakow, Dubai, Boston""".replace("\n    ", " ").split(", ")
)

ALIASES = {
    "the United States": ("USA", "the USA", "US", "the US", "America", "the United States of America", "the States"),
    "the United Kingdom": ("UK", "the UK", "Great Britain", "Britain", "England"),
    "the Netherlands": ("Holland",),
    "the Czech Republic": ("Czechia",),
    "Myanmar": ("Burma",),
    "the United Arab Emirates": ("UAE", "the UAE", "the Emirates"),
    "Bosnia and Herzegovina": ("Bosnia",),
    "the Democratic Republic of the Congo": ("DRC", "the DRC"),
    "Ivory Coast": ("Cote d'Ivoire",),
    "Turkey": ("Turkiye",),
    "East Timor": ("Timor-Leste",),
    "Eswatini": ("Swaziland",),
    "North Macedonia": ("Macedonia",),
    "Russia": ("the Russian Federation",),
}


@dataclass(frozen=True, slots=True)
class Country:
    """One country; `name` carries its article ("the Netherlands")."""

    name: str
    capital: str
    continent: str


def _read(entry: str, continent: str) -> Country:
    name, capital = entry.split(":")
    return Country(name.strip(), capital.strip(), continent)


COUNTRIES = tuple(
    _read(entry, continent) for continent, entries in _BY_CONTINENT.items() for entry in entries.split(",")
)
